"""Detections as COCO's evaluation server takes them, of images without published annotations (test-dev2017).

The server answers no more, so what is compared in this project is val2017; the file is in its format all the same:
``detections_test-dev2017_NAME_results.json``, alone in a zip archive, a list of results with COCO's category ids.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Literal

import torch

from augfpn.data.coco import CocoDataset
from augfpn.data.dataset import Category
from augfpn.engine.evaluate import detect_all, of_kind
from augfpn.engine.runs import Run
from augfpn.errors import UserError
from augfpn.files import written_whole


def write_submission(
    run: Run,
    images: Path,
    info: Path,
    name: str,
    out: Path,
    device: torch.device,
    *,
    kind: Literal["bbox", "segm"] = "bbox",
    batch_size: int = 8,
) -> Path:
    """Detects objects in all images that ``info`` names, and writes the archive to the folder ``out``.

    Args:
        run: a trained run.
        images: the folder of the images, such as ``test2017``.
        info: COCO's list of them, such as ``image_info_test-dev2017.json``; annotations in it are not looked at.
        name: of the algorithm, letters, digits, ``-`` and ``_``.
        kind: boxes or masks; the server wants results of one.
        batch_size: images a batch.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UserError(f"A name is of letters, digits, - and _, not {name!r}.")
    has_masks = run.config.data.masks
    if kind == "segm" and not has_masks:
        raise UserError(f"{run.path} detects boxes only; masks (segm) need a run of Mask R-CNN.")
    dataset = CocoDataset(images, info, annotated=False)
    _check_categories(run.categories, dataset.categories, info)
    results = of_kind(detect_all(run, run.load_model(device), dataset, device, batch_size), kind)
    stem = f"detections_test-dev2017_{name}_results"
    archive = out / f"{stem}.zip"
    with written_whole(archive) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"{stem}.json", json.dumps(results))
    return archive


def _check_categories(ours: tuple[Category, ...], theirs: tuple[Category, ...], info: Path) -> None:
    if ours != theirs:
        different = sorted({f"{category.id} {category.name}" for category in set(ours) ^ set(theirs)})
        raise UserError(
            f"The run's classes are not those of {info}: {', '.join(different[:5])} {'…' if different[5:] else ''}"
            "are in one of them only. Results must have the ids of the images' own data set."
        )
