import json

import pytest
import torch

from augfpn.analysis.runtime import Ratio, Runtime, as_text, measure_runtimes, to_dict
from augfpn.engine import train
from augfpn.errors import UserError
from augfpn.experiments import plan

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runtime")
    ids = ("table2/baseline", "table2/cs+rfa+srs")
    return [train(plan(id, "smoke"), folder / str(number), device=CPU) for number, id in enumerate(ids)]


def test_an_epoch_and_a_rate_worked_by_hand():
    runtime = Runtime(training=(0.5, 0.1, 0.2), inference=(0.25, 0.5, 0.1), num_images=100)
    assert runtime.epoch_seconds == pytest.approx(20)
    assert runtime.images_per_second == pytest.approx(4)
    # Of the same round each: 2, 3 and 1.
    assert Ratio.of((0.2, 0.3, 0.4), (0.1, 0.1, 0.4)) == Ratio(
        median=pytest.approx(2), least=pytest.approx(1), largest=pytest.approx(3)
    )


def test_runs_are_timed_in_turns_and_stay_as_they_are(runs):
    before = [run.weights.read_bytes() for run in runs]
    files = [sorted(path.name for path in run.path.iterdir()) for run in runs]
    runtimes = measure_runtimes(runs, CPU, rounds=2, steps=1, images=9)
    assert [run.weights.read_bytes() for run in runs] == before
    assert [sorted(path.name for path in run.path.iterdir()) for run in runs] == files
    for runtime in runtimes:
        assert len(runtime.training) == len(runtime.inference) == 2
        assert min(*runtime.training, *runtime.inference) > 0
        assert runtime.num_images == 8

    content = json.loads(json.dumps(to_dict(runs, runtimes)))
    fpn, augfpn = content["runs"]["table2/baseline"], content["runs"]["table2/cs+rfa+srs"]
    assert fpn["paper"] == {"hours_per_epoch": 0.9, "images_per_second": 13.4}
    # 1.1 h over 0.9 h, and 13.4 images a second over 11.1.
    assert augfpn["paper"] == {
        "hours_per_epoch": 1.1, "images_per_second": 11.1, "training_time_ratio": 1.22, "inference_time_ratio": 1.21,
    }  # fmt: skip
    assert "training_time_ratio" not in fpn
    ratio = augfpn["inference_time_ratio"]
    assert ratio["least"] <= ratio["median"] <= ratio["largest"]
    lines = as_text(content).splitlines()
    assert lines[2].split()[0] == "table2/baseline"
    assert lines[2].endswith("[13.4/s]")
    assert "[0.9 h]" in lines[2]
    assert "[1.1 h, × 1.22]" in lines[3]
    assert lines[3].endswith("[11.1/s, × 1.21]")
    assert lines[3].count("×") == 4


def test_what_cannot_be_measured_together_is_refused(runs, tmp_path):
    with pytest.raises(UserError, match="name each experiment once"):
        measure_runtimes([runs[0], runs[0]], CPU)
    with pytest.raises(UserError, match="at least"):
        measure_runtimes(runs, CPU, rounds=0)
    other = train(plan("table2/cs", "smoke", batch_size=1), tmp_path / "other", device=CPU)
    with pytest.raises(UserError, match=r"cannot be compared.*batch_size"):
        measure_runtimes([runs[0], other], CPU)


def test_one_stage_detectors_and_masks_are_timed_too(tmp_path):
    ids = ("table1/retinanet_r50_augfpn_1x", "table1/mask_rcnn_r50_fpn_1x")
    runs = [train(plan(id, "smoke"), tmp_path / str(number), device=CPU) for number, id in enumerate(ids)]
    for run in runs:
        (runtime,) = measure_runtimes([run], CPU, rounds=1, steps=1, images=1)
        (entry,) = to_dict([run], [runtime])["runs"].values()
        assert "paper" not in entry
        assert "training_time_ratio" not in entry
