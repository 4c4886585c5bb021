"""The images that views show, read one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image as PILImage
from torch import Tensor
from torchvision.tv_tensors import Image

from augfpn.data.coco_format import DataError
from augfpn.data.images import ImageError, image_path, read_image
from augfpn.data.loading import open_dataset
from augfpn.engine.outcomes_file import Outcomes
from augfpn.experiments.config import DataConfig
from augfpn.ops.resize import resize
from augfpn.structures import Images
from augfpn.visuals.interactive.view import jpeg

# Larger images are made smaller for the screen; boxes stay in the pixels of the whole one.
LONGEST_SIDE = 1600


@dataclass(frozen=True)
class ShownImage:
    """``pixels (3, H, W)`` uint8, as the data set has them."""

    pixels: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.pixels.shape[1:]
        return height, width

    def to_answer(self) -> dict[str, Any]:
        """The image as the module shows it."""
        height, width = self.size
        return {"picture": f"data:image/jpeg;base64,{jpeg(self.to_pil())}", "width": width, "height": height}

    def to_pil(self) -> PILImage.Image:
        picture = PILImage.fromarray(self.pixels.permute(1, 2, 0).contiguous().numpy())
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        return picture

    def as_seen(self, config: DataConfig) -> Images:
        """A batch of this image alone, resized as the run's detector sees it."""
        resized = resize(Image(self.pixels), *config.resized_sides).as_subclass(Tensor)
        return Images.pad([resized])


class Pictures:
    """The validation images of a run, by their positions.

    Opened at once: of files, only those that are shown are read, and checked then.
    """

    def __init__(self, config: DataConfig, outcomes: Outcomes) -> None:
        self._outcomes = outcomes
        self._synthetic = open_dataset(config, "val") if outcomes.folder is None else None

    def __getitem__(self, position: int) -> ShownImage:
        if self._synthetic is not None:
            return ShownImage(self._synthetic[position].image)
        assert self._outcomes.folder is not None
        folder, name = self._outcomes.folder, self._outcomes.names[position]
        try:
            return ShownImage(read_image(image_path(folder, name), self._outcomes.sizes[position]))
        except ImageError as error:
            raise DataError(f"{folder / name}: {error}") from error
