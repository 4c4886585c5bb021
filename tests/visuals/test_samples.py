import pytest
import torch

from augfpn.visuals.samples import _crop


@pytest.mark.parametrize("box", [[31.6, 2.0, 32.0, 9.0], [2.0, 23.7, 9.0, 24.0], [5.2, 5.2, 5.3, 5.3]])
def test_the_crop_of_a_sliver_has_at_least_one_pixel(box):
    assert _crop(torch.zeros(3, 24, 32), box).numel() >= 3
