import importlib
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from augfpn.analysis.image_losses import image_losses, kept_image_losses
from augfpn.data import open_dataset
from augfpn.data.loading import seed_of
from augfpn.engine import Run
from augfpn.engine.runs import RunError, build_model
from augfpn.experiments import plan
from augfpn.structures import Images, Targets

# The package has a function of that name.
MODULE = importlib.import_module("augfpn.analysis.image_losses")
CPU = torch.device("cpu")
AUGFPN = "table2/cs+rfa+srs"
MASK_RCNN = "table1/mask_rcnn_r50_augfpn_1x"
EXPERIMENTS = [AUGFPN, MASK_RCNN, "table2/baseline", "table1/retinanet_r50_augfpn_1x", "table1/fcos_r50_fpn_1x"]


def new_run(path, experiment=AUGFPN, seed=0):
    """A run whose training left the weights as they started."""
    config = plan(experiment, "smoke")
    categories = open_dataset(config.data, "val").categories
    run = Run.create(path, config, categories)
    torch.manual_seed(seed)
    run.save_weights(build_model(config, len(categories), pretrained=False))
    return run


@pytest.fixture
def run(tmp_path):
    return new_run(tmp_path / "run")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_losses_equal_those_of_the_model_on_one_image_after_the_other(tmp_path, experiment):
    run = new_run(tmp_path / "run", experiment)
    model, dataset = run.load_model(CPU), open_dataset(run.config.data, "val")
    expected, numbers = [], []
    for position in range(len(dataset)):
        sample = dataset[position]
        # Of the size to which the smoke scale resizes images.
        images = Images.pad([model.preprocessing.resize(sample.image)])
        assert images.pixels.shape == (1, 3, 64, 64)
        assert torch.equal(images.pixels[0], sample.image)
        masks = [sample.masks] if model.needs_masks else None
        targets = Targets.pad([sample.boxes], [sample.labels], masks, size=(64, 64))
        torch.manual_seed(seed_of(0, position))
        with torch.no_grad():
            losses = model.losses(images, targets)
        assert any("aux" in name for name in losses) == ("augfpn" in experiment or "cs" in experiment)
        expected.append(sum(float(loss) for name, loss in losses.items() if "aux" not in name))
        numbers.append(len(sample.labels))
    assert 0 in numbers, "one of the images has no objects"
    assert len(set(expected)) == len(expected)
    assert image_losses(run, CPU) == pytest.approx(expected, rel=1e-5)


def test_losses_are_repeatable_whatever_the_random_numbers_which_go_on_as_they_were(run, monkeypatch):
    found, after = [], []
    for seed in (7, 8):
        torch.manual_seed(seed)
        found.append(image_losses(run, CPU))
        after.append(torch.rand(()))
    assert found[0] == found[1]
    assert after[0] != after[1]
    # Anchors and RoIs are sampled at random: with other seeds the losses are others.
    monkeypatch.setattr(MODULE, "seed_of", lambda *parts: 1 + sum(parts))
    assert image_losses(run, CPU) != found[0]


def test_the_losses_of_the_first_images_are_the_first_losses(run):
    whole = image_losses(run, CPU)
    (run.path / "image_losses.json").unlink()
    assert image_losses(run, CPU, num_images=2) == whole[:2]
    assert kept_image_losses(run, 4) is None
    assert image_losses(run, CPU, num_images=1000) == whole
    assert kept_image_losses(run, 4) == whole


def test_losses_of_all_images_are_kept_until_the_weights_change(run, tmp_path):
    assert kept_image_losses(run, 4) is None
    first = image_losses(run, CPU)
    assert kept_image_losses(run, 4) == first
    assert len(first) == 4
    # A copy of the run is the same run, whatever the times of its files.
    assert kept_image_losses(Run.open(shutil.copytree(run.path, tmp_path / "copy")), 4) == first
    times = run.weights.stat()
    shutil.copyfile(new_run(tmp_path / "other", seed=1).weights, run.weights)
    assert run.weights.stat().st_size == times.st_size
    assert kept_image_losses(run, 4) is None
    second = image_losses(run, CPU)
    assert second != first
    assert kept_image_losses(run, 4) == second


def test_what_is_kept_of_other_images_or_by_others_is_ignored(run):
    path = run.path / "image_losses.json"
    losses = image_losses(run, CPU)
    kept = json.loads(path.read_text())
    for content in ({**kept, "losses": losses[:-1]}, {"losses": losses}, {**kept, "losses": None}, losses, "{"):
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        assert kept_image_losses(run, 4) is None, content
    path.write_text(json.dumps(kept))
    assert kept_image_losses(run, 4) == losses
    config = run.config
    more = replace(config.data, synthetic=replace(config.data.synthetic, num_val=5))
    (run.path / "run.json").write_text(replace(config, data=more).to_json())
    assert kept_image_losses(run, 5) is None


def test_a_run_without_weights_has_no_losses(run):
    image_losses(run, CPU)
    run.weights.unlink()
    assert kept_image_losses(run, 4) is None
    with pytest.raises(RunError, match="not trained to its end"):
        image_losses(run, CPU)


def test_a_loss_that_is_no_number_is_kept_as_json(run):
    model = run.load_model(CPU)
    # Finite, as weights must be; what they give is not.
    torch.nn.init.constant_(model.box_head.classifier.weight, 3e38)
    run.save_weights(model)
    assert all(map(math.isnan, image_losses(run, CPU)))
    assert json.loads((run.path / "image_losses.json").read_text())["losses"] == [None] * 4
    assert all(map(math.isnan, kept_image_losses(run, 4)))


def test_a_run_that_cannot_be_written_to_has_its_losses_all_the_same(run, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(MODULE, "write_json", refuse)
    assert len(image_losses(run, CPU)) == 4
    assert kept_image_losses(run, 4) is None
