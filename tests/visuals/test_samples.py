import pytest
import torch

from augfpn.engine import train
from augfpn.experiments import plan
from augfpn.visuals.samples import _crop, sample_contexts, sample_fusion, sample_images, spreads


@pytest.mark.parametrize("box", [[31.6, 2.0, 32.0, 9.0], [2.0, 23.7, 9.0, 24.0], [5.2, 5.2, 5.3, 5.3]])
def test_the_crop_of_a_sliver_has_at_least_one_pixel(box):
    assert _crop(torch.zeros(3, 24, 32), box).numel() >= 3


def test_spreads_within_maps_without_their_rim_and_between_them():
    maps = torch.zeros(2, 1, 4, 4)
    maps[:, :, 0] = 1  # a rim alone
    maps[1] += 0.5
    [row] = spreads(maps, ["P2"]).to_numpy().tolist()
    assert row == pytest.approx([0.1875**0.5, 0, 0.25])


def test_contexts_are_weighed_over_c5_and_not_at_all_without_residual_feature_augmentation(tmp_path):
    cpu = torch.device("cpu")
    for number, (id, num) in enumerate({"table2/rfa": 2, "table2/srs": 0, "table1/fcos_r50_augfpn_1x": 2}.items()):
        run = train(plan(id, "smoke"), tmp_path / str(number), device=cpu)
        samples = sample_images(run, 2)
        contexts = sample_contexts(run, samples, cpu)
        assert len(contexts.images) == len(contexts.weights) == num
        if num:
            assert contexts.weights.shape == (2, 3, 2, 2)
            assert contexts.names[0] == "α 0.1: 1 × 1"
    assert sample_fusion(run, samples, cpu).crops == []
