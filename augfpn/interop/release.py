"""Weights of the authors' release, which is a mmdetection of late 2019 with parts of its own.

Its detectors count background as class 0 among 81, as do our heads of two-stage detectors; those of one-stage detectors
have no background. Both predict a box for each class, anchors within ratios, ratios within cells, so that nothing has
to be permuted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from augfpn.interop.renaming import renamed

_CONV = r"(?:conv\.)?(weight|bias)"

_NECK = (
    (rf"lateral_convs\.(\d+)\.{_CONV}", r"lateral_convs.\1.\2"),
    (rf"fpn_convs\.(\d+)\.{_CONV}", r"output_convs.\1.\2"),
    (r"high_lateral_conv\.(\d+)\.(weight|bias)", r"residual_feature_augmentation.convs.\1.\2"),
    (r"high_lateral_conv_attention\.0\.(weight|bias)", r"residual_feature_augmentation.fusion.reduce.\1"),
    (r"high_lateral_conv_attention\.2\.(weight|bias)", r"residual_feature_augmentation.fusion.weigh.\1"),
)
_SOFT_ROI_SELECTION = (
    (r"spatial_attention_conv\.0\.(weight|bias)", r"fusion.reduce.\1"),
    (r"spatial_attention_conv\.2\.(weight|bias)", r"fusion.weigh.\1"),
)
_BOX_HEAD = (
    (r"shared_fcs\.0\.(weight|bias)", r"fc1.\1"),
    (r"shared_fcs\.1\.(weight|bias)", r"fc2.\1"),
    (r"fc_cls\.(weight|bias)", r"classifier.\1"),
    (r"fc_reg\.(weight|bias)", r"regressor.\1"),
)
_MASK_HEAD = (
    (rf"convs\.(\d+)\.{_CONV}", r"convs.\1.\2"),
    (r"upsample\.(weight|bias)", r"upsample.\1"),
    (r"conv_logits\.(weight|bias)", r"classifier.\1"),
)
_ONE_STAGE_HEAD = (
    (rf"cls_convs\.(\d+)\.{_CONV}", r"classification_tower.convs.\1.\2"),
    (rf"reg_convs\.(\d+)\.{_CONV}", r"regression_tower.convs.\1.\2"),
    (r"cls_convs\.(\d+)\.(?:gn|norm)\.(weight|bias)", r"classification_tower.norms.\1.\2"),
    (r"reg_convs\.(\d+)\.(?:gn|norm)\.(weight|bias)", r"regression_tower.norms.\1.\2"),
    (r"(?:retina|fcos)_cls\.(weight|bias)", r"classifier.\1"),
    (r"(?:retina|fcos)_reg\.(weight|bias)", r"regressor.\1"),
    (r"fcos_centerness\.(weight|bias)", r"centerness.\1"),
    (r"scales\.(\d+)\.scale", r"scales.\1"),
)
_REGION_PROPOSALS = (
    (r"rpn_conv\.(weight|bias)", r"conv.\1"),
    (r"rpn_cls\.(weight|bias)", r"objectness.\1"),
    (r"rpn_reg\.(weight|bias)", r"deltas.\1"),
)
# The parts of a detector, theirs and ours, with the names inside.
_PARTS = (
    ("neck.", "pyramid.", _NECK),
    ("rpn_head.", "region_proposals.", _REGION_PROPOSALS),
    ("bbox_roi_extractor.", "roi_pooling.", _SOFT_ROI_SELECTION),
    ("bbox_head.", "box_head.", _BOX_HEAD),
    ("bbox_head.", "head.", _ONE_STAGE_HEAD),
    ("mask_roi_extractor.", "mask_branch.roi_pooling.", _SOFT_ROI_SELECTION),
    ("mask_head.", "mask_branch.head.", _MASK_HEAD),
    ("auxiliary_bbox_head.", "consistent_supervision.head.", _BOX_HEAD),
    ("auxiliary_mask_head.", "consistent_supervision.mask_head.", _MASK_HEAD),
)
_RULES = (
    (r"backbone\.(.+)", r"backbone.body.\1"),
    *((re.escape(theirs) + name, ours + own) for theirs, ours, names in _PARTS for name, own in names),
    # A part alone, without the name of the part.
    *(rule for _, _, names in _PARTS for rule in names),
)


def from_release(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the release in our names: of a whole detector, or of a part with or without its prefix.

    The content of a checkpoint's ``state_dict``; a prefix ``module.`` is dropped. A UserError names what is unknown.

    >>> import torch
    >>> list(from_release({"neck.lateral_convs.0.conv.bias": torch.zeros(1), "fc_cls.bias": torch.zeros(1)}))
    ['pyramid.lateral_convs.0.bias', 'classifier.bias']
    """
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return _with_top(renamed(state, _RULES, "the authors' release"))


def _with_top(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The release keeps the convolutions of P6 and P7 behind those of the levels that have a lateral."""
    laterals = {name for name in state if re.search(r"lateral_convs\.\d+\.weight$", name)}

    def name_of(name: str) -> str:
        match = re.fullmatch(r"(.*)output_convs\.(\d+)\.(weight|bias)", name)
        if match is None or not laterals or int(match[2]) < len(laterals):
            return name
        return f"{match[1]}top.p{6 + int(match[2]) - len(laterals)}.{match[3]}"

    return {name_of(name): tensor for name, tensor in state.items()}
