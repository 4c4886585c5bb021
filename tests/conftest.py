"""What several tests need: data that lies beside the checkout, and small models and runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from augfpn.detectors import Detector, build_from_config
from augfpn.experiments import plan


def _folder(variable: str, what: str) -> Path:
    value = os.environ.get(variable)
    if not value or not Path(value).is_dir():
        pytest.skip(f"{variable} does not name the folder of {what}")
    return Path(value)


@pytest.fixture(scope="session")
def golden():
    """Reads a file of golden tensors, made with the authors' released modules."""
    folder = _folder("AUGFPN_GOLDEN", "golden tensors")
    return lambda name: load_file(folder / f"{name}.safetensors")


@pytest.fixture(scope="session")
def real_images() -> Path:
    """A folder with data sets of real images in COCO's layout."""
    return _folder("AUGFPN_DATA", "real images")


@pytest.fixture
def small_model():
    """Builds the smoke-scale model of an experiment, always with the same weights."""

    def build(experiment: str, num_classes: int = 6) -> Detector:
        torch.manual_seed(0)
        return build_from_config(plan(experiment, "smoke").model, num_classes, short_side=64, long_side=128)

    return build
