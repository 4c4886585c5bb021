"""Boxes and masks on a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import seaborn as sns
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

from augfpn.data.segmentations import binary

# Small pictures are enlarged until their shorter side has so many pixels, so that labels can be read.
READABLE_SIDE = 384
# But not beyond so many of the longer one, as of a line of pixels.
LONGEST_SIDE = 8192
FONT_SIZE = 12
# Detections are drawn from this score on. FCOS's are products of two probabilities, and hardly reach one half.
LEAST_SCORE = 0.3
# The opacity of a mask, of 255, and the width of its contour in pixels.
FILL_OPACITY, CONTOUR = 100, 2


def draw_detections(
    image: Tensor, detections: dict[str, Tensor], class_names: Sequence[str], score_threshold: float = LEAST_SCORE
) -> Image.Image:
    """A picture of ``image (3, H, W)`` uint8 with its boxes and masks, enlarged where it is small.

    Draws detections, or ground truth if there are no ``scores``. ``masks``, where there are any, are probabilities
    ``(D, 1, H, W)`` or 0 and 1 ``(D, H, W)``; they lie below all boxes, so that labels can be read. Each class has a
    colour that colour-blind readers can tell from its neighbours, and each label its own background.
    """
    shorter, longer = sorted(image.shape[1:])
    factor = max(1, min(-(-READABLE_SIDE // shorter), LONGEST_SIDE // longer))
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
    font = ImageFont.load_default(FONT_SIZE)
    colours = (np.array(sns.color_palette("colorblind", len(class_names))) * 255).astype(int)
    boxes, labels = detections["boxes"].tolist(), detections["labels"].tolist()
    scores = detections["scores"].tolist() if "scores" in detections else [None] * len(labels)
    # The best last, so that it lies on top.
    drawn = [i for i, score in enumerate(scores) if score is None or score >= score_threshold][::-1]
    if "masks" in detections:
        for label, mask in zip([labels[i] for i in drawn], binary(detections["masks"][drawn]), strict=True):
            _draw_mask(picture, mask, tuple(colours[label - 1]))
    canvas = ImageDraw.Draw(picture)
    for box, label, score in ((boxes[i], labels[i], scores[i]) for i in drawn):
        colour = tuple(colours[label - 1])
        x1, y1, x2, y2 = (side * factor for side in box)
        canvas.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=2)
        text = class_names[label - 1] if score is None else f"{class_names[label - 1]} {score:.2f}"
        at = (x1 + 2, max(0, y1 - FONT_SIZE - 3))
        canvas.rectangle(canvas.textbbox(at, text, font=font), fill=colour, outline=colour, width=2)
        canvas.text(at, text, fill=_readable_on(colour), font=font)
    return picture


def _draw_mask(picture: Image.Image, mask: Tensor, colour: tuple[int, ...]) -> None:
    """Covers ``mask (H, W)`` of 0 and 1, enlarged to the picture, with a translucent colour within a contour of it."""
    shape = Image.fromarray(mask.numpy() * np.uint8(255)).resize(picture.size, Image.Resampling.BILINEAR)
    shape = shape.point(lambda value: 255 if value >= 128 else 0)
    inside = shape.filter(ImageFilter.MinFilter(2 * CONTOUR + 1))
    opacity = np.where(np.asarray(inside) > 0, FILL_OPACITY, np.asarray(shape)).astype(np.uint8)
    picture.paste(colour, mask=Image.fromarray(opacity))


def _readable_on(colour: tuple[int, ...]) -> str:
    red, green, blue = colour
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
