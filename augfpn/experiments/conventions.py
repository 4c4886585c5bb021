"""The fine print in which implementations of the same detectors differ.

The paper's figures were made with mmdetection of late 2019 (the release); torchvision's detectors settle the same
questions differently. A detector is built with one `Conventions`; nothing else in the package knows whose they are.
Counts and thresholds are no conventions: they are in the detector's own configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

from augfpn.experiments.checks import require, require_choices, require_fraction, require_positive


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """The defaults are the release's, as far as `README.md` lists no departure.

    Images:
        antialias: smooth an image before making it smaller. (The release does not; it hardly ever makes one smaller.)
    Anchors:
        anchor_centre: where in its cell an anchor sits, 0.5 for the middle, 0 for the upper left corner.
        whole_pixel_anchors: anchors have corners in whole pixels relative to their centre, and their cells are spaced
            by the image's side over the number of cells rather than by a stride.
        train_inside_only: the region proposal network leaves anchors that leave their image out of training.
        best_anchor_of: an anchor that is the best of an object is trained towards that "object", or towards the object
            that it overlaps most ("overlap"), which may be another one.
        lowest_best_iou: how far an object's best anchor must overlap it at least, in the region proposal network.
    Losses:
        box_smooth_l1_beta: where smooth L1 turns from square to straight, in the box head.
        retinanet_smooth_l1_beta: the same for RetinaNet; 0 is the plain L1 distance.
        retinanet_mean: sums over anchors are divided by the number of foreground anchors of the whole "batch", or of
            each "image" before the mean over images.
    RetinaNet's pyramid:
        retinanet_top: P6 is made from "c5", and P7 from P6, or P6 from "p5", with a ReLU before P7.
    FCOS:
        fcos_centre_radius: only places within so many strides of an object's centre are foreground; None for all
            places in its box.
        fcos_range_ends: a place whose largest distance is just a limit of two levels' ranges is for "both" of them, or
            for "neither".
        fcos_centerness_on: the tower that centerness is read from.
        fcos_distances: distances are exp(scale · x) pixels ("exp"), or relu(x) strides ("relu").
        fcos_tower_bias: the convolutions before group norm have a bias.
        fcos_box_loss: −log IoU weighted by centerness ("iou"), or generalised IoU ("giou").
        fcos_score: class probability × centerness ("product"), or the square root of it ("root"). The score threshold
            is for the class probability with the former, for the score itself with the latter.
    """

    antialias: bool = True
    anchor_centre: float = 0.5
    whole_pixel_anchors: bool = False
    train_inside_only: bool = True
    best_anchor_of: Literal["object", "overlap"] = "object"
    lowest_best_iou: float = 0.3
    box_smooth_l1_beta: float = 1.0
    retinanet_smooth_l1_beta: float = 0.11
    retinanet_mean: Literal["batch", "image"] = "batch"
    retinanet_top: Literal["c5", "p5"] = "c5"
    fcos_centre_radius: float | None = None
    fcos_range_ends: Literal["both", "neither"] = "both"
    fcos_centerness_on: Literal["classification", "regression"] = "classification"
    fcos_distances: Literal["exp", "relu"] = "exp"
    fcos_tower_bias: bool = False
    fcos_box_loss: Literal["iou", "giou"] = "iou"
    fcos_score: Literal["product", "root"] = "product"

    def __post_init__(self) -> None:
        require_choices(self)
        require_fraction(self, "anchor_centre", "lowest_best_iou")
        require_positive(self, "box_smooth_l1_beta", "fcos_centre_radius")
        # 0 is the plain L1 distance.
        beta = self.retinanet_smooth_l1_beta
        require(0 <= beta < inf, f"retinanet_smooth_l1_beta must not be negative, but is {beta}.")


RELEASE = Conventions()

TORCHVISION = Conventions(
    antialias=False,
    anchor_centre=0.0,
    whole_pixel_anchors=True,
    train_inside_only=False,
    best_anchor_of="overlap",
    lowest_best_iou=0.0,
    box_smooth_l1_beta=1 / 9,
    retinanet_smooth_l1_beta=0.0,
    retinanet_mean="image",
    retinanet_top="p5",
    fcos_centre_radius=1.5,
    fcos_range_ends="neither",
    fcos_centerness_on="regression",
    fcos_distances="relu",
    fcos_tower_bias=True,
    fcos_box_loss="giou",
    fcos_score="root",
)
