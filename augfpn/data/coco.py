"""Data sets in COCO's format: any categories, any ids, images without objects, crowds, odd image files.

Everything is checked when the data set is opened, before any training; only who looks at a few images may leave their
files for later. What cannot be used is an error that names the file or the field; a box without area, or outside its
image, is reported and dropped, or refused with ``strict``. So is an object whose mask cannot be used, where masks are
asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from augfpn.data.coco_format import CocoBox, CocoImage, DataError, find_split, read_annotations, refuse_any
from augfpn.data.dataset import DataProblem, Sample
from augfpn.data.images import ImageError, check_image, image_path, read_image
from augfpn.data.segmentations import decode


class CocoDataset:
    """The images of a folder with annotations in COCO's format.

    Args:
        folder: of the images.
        annotations: the JSON file.
        strict: refuse faulty objects.
        masks: samples carry instance masks.
        annotated: False for a file that only names images and categories; there are no objects then.
        check_images: False to find out what is wrong with an image file when it is read.

    Attributes:
        categories: in the order of their ids, whatever the ids are; a category's position plus 1 is its label.
        problems: the objects that were dropped or cut, and why.
    """

    def __init__(
        self,
        folder: Path,
        annotations: Path,
        strict: bool = False,
        masks: bool = False,
        annotated: bool = True,
        check_images: bool = True,
    ) -> None:
        content = read_annotations(annotations, masks, annotated)
        if check_images:
            refuse_any(annotations, _image_problems(folder, content.images))
        if strict:
            refuse_any(annotations, content.problems)
        self.folder = folder
        self.annotations = annotations
        self.annotated = annotated
        self.masks = masks
        self.categories = content.categories
        self.problems = content.problems
        self._images = content.images

        # Objects of all images behind one another; those of image i from starts[i] to starts[i + 1]. Arrays rather
        # than Python objects: they are smaller, and quickly sent to worker processes.
        of_image: dict[int, list[CocoBox]] = {image.id: [] for image in content.images}
        for box in content.boxes:
            if not box.is_crowd:
                of_image[box.image_id].append(box)
        label_of = {category.id: label for label, category in enumerate(self.categories, start=1)}
        ordered = [box for image in content.images for box in of_image[image.id]]
        self._starts = np.cumsum([0] + [len(of_image[image.id]) for image in content.images])
        self._boxes = np.array([box.corners for box in ordered], dtype=np.float32).reshape(-1, 4)
        self._labels = np.array([label_of[box.category_id] for box in ordered], dtype=np.int64)
        # Masks likewise: the packed run lengths of object j from mask_starts[j] to mask_starts[j + 1].
        packed = [box.annotation["segmentation"]["counts"].encode() for box in ordered] if masks else []
        self._packed = np.frombuffer(b"".join(packed), dtype=np.uint8)
        self._mask_starts = np.cumsum([0] + [len(counts) for counts in packed])

    @classmethod
    def open(
        cls, root: Path, split: str, strict: bool = False, masks: bool = False, check_images: bool = True
    ) -> CocoDataset:
        """The split ``train``, ``val`` or ``test`` of a folder in COCO's layout."""
        return cls(*find_split(root, split), strict, masks, check_images=check_images)

    @property
    def file_names(self) -> list[str]:
        return [image.file_name for image in self._images]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        image = self._images[index]
        path = self.folder / image.file_name
        try:
            pixels = read_image(image_path(self.folder, image.file_name), (image.height, image.width))
        except ImageError as error:
            raise DataError(f"{path}: {error}") from error
        objects = slice(self._starts[index], self._starts[index + 1])
        boxes, labels = self._boxes[objects].copy(), self._labels[objects].copy()
        masks = self._masks(range(objects.start, objects.stop), image) if self.masks else None
        return Sample(image.id, pixels, torch.from_numpy(boxes), torch.from_numpy(labels), masks)

    def ground_truth(self) -> dict[str, Any]:
        # Read again: the evaluation needs every field, and training need not carry them.
        content = read_annotations(self.annotations, self.masks, self.annotated)
        # Ids from 1, because COCO's evaluation takes an annotation of id 0 for no match.
        return {
            "info": content.info,
            "images": [vars(image) for image in content.images],
            "annotations": [{**box.annotation, "id": id} for id, box in enumerate(content.boxes, start=1)],
            "categories": [vars(category) for category in content.categories],
        }

    def _masks(self, objects: range, image: CocoImage) -> Tensor:
        size = [image.height, image.width]
        packed = [self._packed[self._mask_starts[o] : self._mask_starts[o + 1]].tobytes() for o in objects]
        return decode([{"size": size, "counts": counts} for counts in packed], *size)


def _image_problems(folder: Path, images: tuple[CocoImage, ...]) -> list[DataProblem]:
    problems = []
    for image in images:
        try:
            check_image(image_path(folder, image.file_name), (image.height, image.width))
        except ImageError as error:
            problems.append(DataProblem(str(folder / image.file_name), str(error)))
    return problems
