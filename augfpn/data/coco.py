"""Data sets in COCO's format: any categories, any ids, images without objects, crowds, odd image files.

Everything is checked when the data set is opened, before any training; only who looks at a few images may leave their
files for later. What cannot be used is an error that names the file or the field; a box without area, or outside its
image, is reported and dropped, or refused with ``strict``. So is an object whose mask cannot be used, where masks are
asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
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
        problems: the objects that were dropped, cut or numbered anew, and why; none in the copy of a worker process.
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
        self.problems: Sequence[DataProblem] = content.problems

        of_image: dict[int, list[CocoBox]] = {image.id: [] for image in content.images}
        for box in content.boxes:
            if not box.is_crowd:
                of_image[box.image_id].append(box)
        label_of = {category.id: label for label, category in enumerate(self.categories, start=1)}
        ordered = [box for image in content.images for box in of_image[image.id]]
        # Tensors rather than Python objects: they are smaller, and worker processes share them with this one, whereas
        # of Python objects each would have its own. What belongs to image i stands from starts[i] to starts[i + 1].
        self._ids = torch.tensor([image.id for image in content.images])
        self._sizes = torch.tensor([(image.height, image.width) for image in content.images])
        self._names, self._name_starts = _joined([image.file_name.encode() for image in content.images])
        self._starts = _starts([len(of_image[image.id]) for image in content.images])
        self._boxes = torch.tensor([box.corners for box in ordered], dtype=torch.float32).reshape(-1, 4)
        self._labels = torch.tensor([label_of[box.category_id] for box in ordered], dtype=torch.int32)
        # The packed run lengths of object j.
        counts = [box.mask["counts"].encode() for box in ordered if box.mask is not None]
        self._packed, self._mask_starts = _joined(counts)

    @classmethod
    def open(
        cls, root: Path, split: str, strict: bool = False, masks: bool = False, check_images: bool = True
    ) -> CocoDataset:
        """The split ``train``, ``val`` or ``test`` of a folder in COCO's layout."""
        return cls(*find_split(root, split), strict, masks, check_images=check_images)

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes only read samples.
        return {**self.__dict__, "problems": ()}

    @property
    def file_names(self) -> list[str]:
        return [self._file_name(index) for index in range(len(self))]

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        path = self.folder / self._file_name(index)
        height, width = self._sizes[index].tolist()
        try:
            pixels = read_image(image_path(self.folder, self._file_name(index)), (height, width))
        except ImageError as error:
            raise DataError(f"{path}: {error}") from error
        first, last = self._starts[index : index + 2].tolist()
        return Sample(
            int(self._ids[index]),
            pixels,
            self._boxes[first:last].clone(),
            self._labels[first:last].long(),
            self._masks(first, last, height, width) if self.masks else None,
        )

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

    def _file_name(self, index: int) -> str:
        first, last = self._name_starts[index : index + 2].tolist()
        return self._names[first:last].numpy().tobytes().decode()

    def _masks(self, first: int, last: int, height: int, width: int) -> Tensor:
        starts = self._mask_starts[first : last + 1].tolist()
        packed = [self._packed[start:end].numpy().tobytes() for start, end in pairwise(starts)]
        return decode([{"size": [height, width], "counts": counts} for counts in packed], height, width)


def _joined(texts: list[bytes]) -> tuple[Tensor, Tensor]:
    """Texts behind one another as uint8, and where each of them starts."""
    return torch.from_numpy(np.frombuffer(bytearray(b"".join(texts)), dtype=np.uint8)), _starts(map(len, texts))


def _starts(lengths: Iterable[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)])


def _image_problems(folder: Path, images: tuple[CocoImage, ...]) -> list[DataProblem]:
    problems = []
    for image in images:
        try:
            check_image(image_path(folder, image.file_name), (image.height, image.width))
        except ImageError as error:
            problems.append(DataProblem(str(folder / image.file_name), str(error)))
    return problems
