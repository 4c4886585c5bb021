import json

import pytest
import torch

from augfpn.analysis.probe import ObjectFeatures, train_probe
from augfpn.analysis.semantic_gap import check_same_objects, gap_between, linear_cka, semantic_gaps
from augfpn.data import SyntheticDataset
from augfpn.engine import Execution, Run, train
from augfpn.errors import UserError
from augfpn.experiments import plan

CPU = torch.device("cpu")
LEVELS = ("M2", "M3")


def rotation(size, seed=0):
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[
        0
    ]


def random_features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def direct_cka(one, other):
    """From the similarities of every object with every other one, Kornblith et al. 2019, Equations 2 to 4."""
    num = len(one)
    centring = torch.eye(num, dtype=torch.float64) - 1 / num

    def hsic(k, m):
        return torch.trace(k @ centring @ m @ centring) / (num - 1) ** 2

    k, m = one @ one.T, other @ other.T
    return hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()


def test_cka_equals_a_direct_computation():
    one = random_features(30, 5)
    other = one[:, :3] @ random_features(3, 7, seed=1) + random_features(30, 7, seed=2) + 4
    assert 0.1 < direct_cka(one, other) < 0.9
    torch.testing.assert_close(linear_cka(one, other), direct_cka(one, other))


def test_cka_is_1_for_equal_rotated_scaled_and_moved_features():
    features = random_features(20, 6)
    one = torch.tensor(1.0, dtype=torch.float64)
    for same in (features, features @ rotation(6), -3 * features, features + 5):
        torch.testing.assert_close(linear_cka(features, same), one)
    # Any other linear map is not the same arrangement.
    assert linear_cka(features, features * torch.tensor([10.0, 1, 1, 1, 1, 1])) < 0.9


def test_cka_of_features_that_have_nothing_in_common_is_small_and_of_constant_ones_is_none():
    assert linear_cka(random_features(4000, 5), random_features(4000, 5, seed=1)) < 0.01
    assert linear_cka(random_features(10, 5), torch.ones(10, 5, dtype=torch.float64)).isnan()


def test_a_gap_worked_by_hand():
    # Three objects in two levels, two channels.
    features = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[0.0, 1.0], [0.0, 3.0]], [[1.0, 1.0], [1.0, 0.0]]])
    objects = ObjectFeatures(features, torch.tensor([1, 2, 2]), None, LEVELS)
    gap = gap_between(objects, torch.tensor([[1, 1], [2, 1], [2, 1]]), "probe")
    # Cosines of the objects: 0, 1, 1 / √2.
    assert gap.cosine[0, 1].item() == pytest.approx((0 + 1 + 0.5**0.5) / 3)
    assert gap.cosine.diagonal().tolist() == pytest.approx([1, 1])
    assert gap.disagreement.tolist() == [[0, pytest.approx(2 / 3)], [pytest.approx(2 / 3), 0]]
    assert gap.accuracy.tolist() == pytest.approx([1, 1 / 3])
    assert gap.num_rois == 3
    assert gap.summary() == pytest.approx(
        {
            "cka": direct_cka(*features.double().unbind(1)).item(),
            "cosine": 0.5690356,
            "disagreement": 2 / 3,
            "accuracy": 2 / 3,
        }
    )
    assert gap.to_dict()["levels"] == list(LEVELS)


def test_levels_that_hold_the_same_have_no_gap():
    features = random_features(20, 1, 6).expand(-1, 3, -1)
    objects = ObjectFeatures(features, torch.randint(1, 4, (20,)), None, ("M3", "M4", "M5"))
    gap = gap_between(objects, train_probe(objects, 3).classes(features), "probe")
    torch.testing.assert_close(gap.cka, torch.ones(3, 3, dtype=torch.float64))
    torch.testing.assert_close(gap.cosine, torch.ones(3, 3, dtype=torch.float64))
    assert torch.equal(gap.disagreement, torch.zeros(3, 3, dtype=torch.float64))


def test_one_classifier_can_serve_levels_that_mean_the_same_and_no_others():
    labels = torch.randint(1, 4, (300,), generator=torch.Generator().manual_seed(0))
    meaning = 4 * torch.eye(3, dtype=torch.float64)[labels - 1]
    same = torch.stack([meaning + random_features(300, 3), 2 * meaning + random_features(300, 3, seed=1)], dim=1)
    # In the second level, each channel stands for another class than in the first.
    other = torch.stack([same[:, 0], same[:, 1].roll(1, dims=1)], dim=1)
    gaps = []
    for features in (same, other):
        objects = ObjectFeatures(features, labels, None, LEVELS)
        gaps.append(gap_between(objects, train_probe(objects, 3).classes(features), "probe"))
    assert gaps[0].accuracy.min() > 0.9
    assert gaps[0].disagreement[0, 1] < 0.1
    assert gaps[1].disagreement[0, 1] > 0.5
    assert gaps[1].accuracy.mean() < 0.7
    # CKA does not mind which channel is which; the sum of the top-down path does.
    torch.testing.assert_close(gaps[0].cka, gaps[1].cka)
    assert gaps[1].cosine[0, 1] < gaps[0].cosine[0, 1] - 0.3


@pytest.mark.parametrize(
    ("experiment", "classifiers", "levels"),
    [
        ("table2/baseline", ["probe"], 4),
        ("table2/cs+rfa+srs", ["probe", "auxiliary head"], 4),
        # At small scales one-stage detectors begin with M2, too.
        ("table1/fcos_r50_augfpn_1x", ["probe", "auxiliary head"], 4),
    ],
)
def test_the_gap_of_a_run_at_its_end_and_along_its_training(tmp_path, experiment, classifiers, levels):
    run = train(plan(experiment, "smoke"), tmp_path / "run", execution=Execution(keep_checkpoints=True), device=CPU)
    ends = semantic_gaps(run, CPU)
    assert list(ends) == classifiers
    for gap in ends.values():
        assert gap.cka.shape == gap.cosine.shape == gap.disagreement.shape == (levels, levels)
        torch.testing.assert_close(gap.cka, gap.cka.T)
        assert gap.cka.diagonal().tolist() == pytest.approx([1] * levels)
        assert gap.disagreement.diagonal().tolist() == [0] * levels
    earlier = semantic_gaps(run, CPU, step=2)["probe"]
    assert not torch.equal(earlier.cka, ends["probe"].cka)
    fewer = semantic_gaps(run, CPU, num_images=1)["probe"]
    assert 0 < fewer.num_rois < earlier.num_rois


def test_what_is_not_defined_is_null_in_json():
    features = torch.ones(3, 2, 4)
    gap = gap_between(ObjectFeatures(features, torch.ones(3).long(), None, LEVELS), torch.ones(3, 2).long(), "probe")
    content = json.loads(json.dumps(gap.to_dict(), allow_nan=False))
    assert content["cka"] == [[None, None], [None, None]]
    assert content["means"]["cka"] is None
    assert content["means"]["accuracy"] == 1


def test_runs_whose_objects_are_not_the_same_or_were_trained_on_are_refused(tmp_path):
    runs = [
        Run.create(tmp_path / name, plan("table2/cs", "smoke", **changes), SyntheticDataset.categories)
        for name, changes in (("a", {}), ("b", {"seed": 1}), ("c", {"data": "/somewhere"}), ("d", {"overfit": 2}))
    ]
    check_same_objects(runs[:2])
    with pytest.raises(UserError, match=r"cannot be compared: data\.root"):
        check_same_objects(runs[:3])
    with pytest.raises(UserError, match="trained on its validation images"):
        semantic_gaps(runs[3], CPU)
