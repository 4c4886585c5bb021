"""Boxes on a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import seaborn as sns
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

# Small pictures are enlarged until their shorter side has so many pixels, so that labels can be read.
READABLE_SIDE = 384
FONT_SIZE = 12


def draw_detections(
    image: Tensor, detections: dict[str, Tensor], class_names: Sequence[str], score_threshold: float = 0.5
) -> Image.Image:
    """A picture of ``image (3, H, W)`` uint8 with its boxes, enlarged where it is small.

    Draws detections, or ground truth if there are no ``scores``. Each class has a colour that colour-blind readers can
    tell from its neighbours, and each label its own background.
    """
    factor = max(1, -(-READABLE_SIDE // min(image.shape[1:])))
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
    canvas = ImageDraw.Draw(picture)
    font = ImageFont.load_default(FONT_SIZE)
    colours = (np.array(sns.color_palette("colorblind", len(class_names))) * 255).astype(int)
    scores = detections["scores"].tolist() if "scores" in detections else [None] * len(detections["labels"])
    # The best last, so that it lies on top.
    for box, label, score in reversed(
        list(zip(detections["boxes"].tolist(), detections["labels"].tolist(), scores, strict=True))
    ):
        if score is not None and score < score_threshold:
            continue
        colour = tuple(colours[label - 1])
        x1, y1, x2, y2 = (side * factor for side in box)
        canvas.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=2)
        text = class_names[label - 1] if score is None else f"{class_names[label - 1]} {score:.2f}"
        at = (x1 + 2, max(0, y1 - FONT_SIZE - 3))
        canvas.rectangle(canvas.textbbox(at, text, font=font), fill=colour, outline=colour, width=2)
        canvas.text(at, text, fill=_readable_on(colour), font=font)
    return picture


def _readable_on(colour: tuple[int, ...]) -> str:
    red, green, blue = colour
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
