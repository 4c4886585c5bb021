"""The loss of every validation image by itself: which images a detector finds hard, and which it has no trouble with.

An image's loss is the sum of the detector's own losses (Equation 1 without the auxiliary terms of Consistent
Supervision, which detectors without it do not have) in a batch of this image alone, in evaluation mode and without
gradient. So each term is averaged over the image's own anchors and RoIs, and an image without objects has a loss, too:
that of taking its background for objects.

Two-stage detectors sample anchors and RoIs at random, as they do in training. The sample is a function of the image's
position among the validation images, so that figures can be had again, on the same kind of device; RetinaNet and FCOS
sample nothing. Losses compare images of one run. Those of another architecture have other terms.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from dataclasses import replace

import torch

from augfpn.data.dataset import DetectionDataset, SelectedImages
from augfpn.data.loading import evaluation_batches, open_dataset, seed_of
from augfpn.engine.runs import Run
from augfpn.files import without_nan, write_json

FILE = "image_losses.json"


@torch.no_grad()
def image_losses(run: Run, device: torch.device, *, num_images: int | None = None) -> list[float]:
    """The loss of each validation image of a trained run, in the data set's order; or of the first ``num_images``.

    Those of all images are kept with the run, as ``image_losses.json`` (`kept_image_losses`).
    """
    # Without Consistent Supervision and its losses.
    model = run.load_model(device).for_inference()
    weights = _digest_of_weights(run)
    config = replace(run.config.data, masks=model.needs_masks)
    dataset: DetectionDataset = open_dataset(config, "val")
    num_all = len(dataset)
    if num_images is not None:
        dataset = SelectedImages(dataset, range(min(num_images, num_all)))
    batches = evaluation_batches(dataset, config, batch_size=1, num_workers=run.config.training.num_workers)
    found = []
    for position, batch in enumerate(batches):
        on_device = batch.to(device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed_of(0, position))
            losses = model.losses(on_device.images, on_device.targets)
        found.append(float(torch.stack(list(losses.values())).sum()))
    if len(found) == num_all:
        # Somebody else's run, which cannot be written to, has its losses all the same.
        with contextlib.suppress(OSError):
            write_json(run.path / FILE, without_nan({"weights": weights, "losses": found}))
    return found


def kept_image_losses(run: Run, num_images: int) -> list[float] | None:
    """What `image_losses` kept with a run; None if it did not, or if it was of other weights or of other images.

    ``num_images``: how many validation images there are; whoever asks knows, and to count them takes opening them.
    """
    try:
        kept = json.loads((run.path / FILE).read_text(encoding="utf-8"))
        if kept["weights"] != _digest_of_weights(run) or not isinstance(kept["losses"], list):
            return None
        losses = [math.nan if loss is None else float(loss) for loss in kept["losses"]]
    except (OSError, ValueError, TypeError, KeyError, ArithmeticError, RecursionError):
        # Not there, or not a file of ours.
        return None
    return losses if len(losses) == num_images else None


def _digest_of_weights(run: Run) -> str:
    """Of what is in the file: its time and size can be the same for other weights, and change when a run is copied."""
    with run.weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
