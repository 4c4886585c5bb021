import importlib.metadata
import json
from dataclasses import replace

import pytest
import torch

from augfpn.data import SyntheticDataset, open_dataset, training_batches
from augfpn.engine import Execution, Run, train
from augfpn.engine.runs import RunError
from augfpn.engine.schedule import learning_rate
from augfpn.engine.step import build_optimizer
from augfpn.errors import UserError
from augfpn.experiments import plan
from augfpn.experiments.config import TrainingConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "finished"
    return train(plan("table2/baseline", "smoke"), path, device=CPU)


def test_a_finished_run_has_weights_history_and_provenance(finished):
    assert finished.is_trained
    history = finished.history()
    assert [line["step"] for line in history] == [1, 2, 3, 4]
    assert {"loss", "loss_classifier", "learning_rate", "gradient_norm", "seconds", "epoch"} <= history[0].keys()
    assert finished.config == plan("table2/baseline", "smoke")
    assert finished.provenance["derived"]["num_classes"] == 6
    assert finished.provenance["packages"]["torch"] == importlib.metadata.version("torch")
    assert len(finished.checkpoint_steps) <= 2
    model = finished.load_model(CPU)
    assert not model.training


def test_kept_checkpoints_are_the_model_along_its_training(tmp_path):
    run = train(
        plan("table2/baseline", "smoke", steps=8),
        tmp_path / "all",
        execution=Execution(keep_checkpoints=True),
        device=CPU,
    )
    assert run.checkpoint_steps == (2, 4, 6)
    shorter = train(plan("table2/baseline", "smoke", steps=8), tmp_path / "last", device=CPU)
    assert shorter.checkpoint_steps == (4, 6)
    weights = [run.load_model(CPU, step).box_head.fc1.weight for step in (2, 6)]
    assert not torch.equal(weights[0], weights[1])
    with pytest.raises(UserError, match="no checkpoint of step 2; kept are those of: 4, 6"):
        shorter.load_model(CPU, 2)


def test_a_run_that_keeps_its_checkpoints_keeps_them_when_it_goes_on(tmp_path):
    config = plan("table2/baseline", "smoke", steps=8)
    run = train(config, tmp_path / "run", execution=Execution(keep_checkpoints=True), device=CPU)
    # As if it had been killed in its last step.
    run.weights.unlink()
    (run.path / "checkpoints" / "step_00000006.pt").unlink()
    train(config, tmp_path / "run", resume=True, device=CPU)
    assert run.checkpoint_steps == (2, 4, 6)


def test_a_run_of_a_row_that_has_become_the_same_model_as_another_is_still_itself(tmp_path):
    config = plan("table2/baseline", "smoke")
    run = train(config, tmp_path / "run", device=CPU)
    description = run.path / "run.json"
    description.write_text(description.read_text().replace("table2/baseline", "table1/faster_rcnn_r50_fpn_1x"))
    assert run.config == config
    train(plan("table1/faster_rcnn_r50_fpn_1x", "smoke"), run.path, resume=True, device=CPU)
    description.write_text(description.read_text().replace("table1/faster_rcnn_r50_fpn_1x", "table9/nothing"))
    with pytest.raises(RunError, match=r"run\.json cannot be read: There is no experiment 'table9/nothing'"):
        _ = run.config


def test_resuming_a_finished_run_changes_nothing(finished):
    before = finished.weights.stat().st_mtime_ns
    train(finished.config, finished.path, resume=True, device=CPU)
    assert finished.weights.stat().st_mtime_ns == before


def test_a_run_is_not_overwritten(finished):
    with pytest.raises(RunError, match="holds a run already"):
        train(finished.config, finished.path, device=CPU)


def test_a_run_is_not_resumed_as_another_one(finished):
    with pytest.raises(RunError, match=r"seed: 0 → 1"):
        train(replace(finished.config, seed=1), finished.path, resume=True, device=CPU)


def test_a_run_that_is_not_finished_cannot_be_loaded(tmp_path):
    run = Run.create(tmp_path, plan("table2/baseline", "smoke"), SyntheticDataset.categories)
    with pytest.raises(RunError, match="not trained to its end"):
        run.load_model(CPU)


def test_a_line_that_was_cut_off_is_left_out_of_the_history(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert Run(tmp_path).history() == [{"step": 1}]


def test_losses_that_are_not_finite_stop_the_run_and_are_named(tmp_path):
    config = plan("table2/baseline", "smoke")
    config = replace(config, training=replace(config.training, learning_rate=1e30, clip_norm=None))
    with pytest.raises(UserError) as caught:
        train(config, tmp_path, device=CPU)
    run = Run(tmp_path)
    assert not run.is_trained
    # The first step is as it should be; its update is not.
    [batch_file] = (tmp_path / "faults").iterdir()
    batch = torch.load(batch_file, weights_only=True)
    assert batch["step"] == 2
    assert {"loss", "loss_classifier", "gradient_norm"} <= batch["terms"].keys()
    [part] = batch["parts"]
    dataset = open_dataset(config.data, "train")
    of_step = next(training_batches(dataset, config.data, seed=0, batch_size=2, first_step=1, num_steps=2))
    assert part["image_ids"] == list(of_step.image_ids)
    torch.testing.assert_close(part["pixels"], of_step.images.pixels)
    torch.testing.assert_close(part["boxes"], of_step.targets.boxes)
    names = [f"{id:012d}.png (id {id})" for id in of_step.image_ids]
    for part in ("step 2", "loss_classifier is nan", *names, str(batch_file), "--learning-rate"):
        assert part in str(caught.value)


def test_a_checkpoint_is_not_written_of_weights_that_are_not_finite(tmp_path):
    # It becomes known at the checkpoint of step 2, though the next line would come later.
    config = plan("table2/baseline", "smoke", steps=8)
    config = replace(config, training=replace(config.training, learning_rate=1e30, clip_norm=None, log_every=100))
    with pytest.raises(UserError, match=r"at step 2: .* There is no checkpoint before it"):
        train(config, tmp_path, device=CPU)
    assert Run(tmp_path).checkpoint_steps == ()


def test_the_papers_learning_rate(tmp_path):
    paper = TrainingConfig()
    num_steps = paper.num_steps(117_266)
    assert num_steps == 87_950
    rates = [learning_rate(paper, step, num_steps) for step in (0, 250, 500, 58_000, 59_000, 80_000, 81_000)]
    # From a third of 0.02 to 0.02 over 500 steps; a tenth after the 8th and a hundredth after the 11th of 12 epochs.
    assert rates == pytest.approx([0.02 / 3, 0.02 * 2 / 3, 0.02, 0.02, 0.002, 0.002, 0.0002])


def test_the_learning_rate_is_linear_in_the_batch_size():
    assert replace(TrainingConfig(), batch_size=2).scaled_learning_rate == pytest.approx(0.0025)


def test_either_epochs_or_steps_are_given():
    with pytest.raises(UserError, match="either epochs or steps"):
        TrainingConfig(epochs=12, steps=100)


def fcos_training():
    return plan("table1/fcos_r50_augfpn_1x", "paper", data="somewhere").training


def groups_of(model, training):
    """Of each trained parameter, the factor of its rate and its weight decay."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["rate_factor"], group["weight_decay"])
        for group in build_optimizer(model, training).param_groups
        for parameter in group["params"]
    }


def test_biases_learn_at_twice_the_rate_without_decay_where_so_described(small_model):
    model = small_model("table1/fcos_r50_augfpn_1x")
    groups = groups_of(model, fcos_training())
    assert groups.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert groups["head.classifier.bias"] == groups["pyramid.lateral_convs.0.bias"] == (2.0, 0.0)
    assert groups["consistent_supervision.head.fc1.bias"] == (2.0, 0.0)
    assert groups["head.classifier.weight"] == groups["head.scales.0"] == (1.0, 1e-4)


def test_shifts_of_normalisations_are_no_biases(small_model):
    # As in the release, where a rule for the names of norms comes before the one for biases.
    groups = groups_of(small_model("table1/fcos_r50_augfpn_1x"), fcos_training())
    assert groups["head.classification_tower.norms.0.bias"] == (1.0, 1e-4)
    assert groups["backbone.body.layer1.0.bn1.bias"] == (1.0, 1e-4)


def test_elsewhere_biases_are_trained_like_weights(small_model):
    model = small_model("table1/retinanet_r50_augfpn_1x")
    assert set(groups_of(model, plan("table1/retinanet_r50_augfpn_1x", "paper", data="x").training).values()) == {
        (1.0, 1e-4)
    }


def test_frozen_parameters_are_in_no_group(small_model):
    model = small_model("table2/baseline")
    model.backbone.requires_grad_(False)
    assert not any(name.startswith("backbone") for name in groups_of(model, TrainingConfig()))


def test_one_step_moves_weights_and_biases_as_described():
    # Without momentum's memory a first step is rate × factor × (gradient + decay × parameter).
    layer = torch.nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(2.0)
        layer.bias.fill_(3.0)
    training = replace(fcos_training(), weight_decay=0.1)
    optimizer = build_optimizer(layer, training)
    for group in optimizer.param_groups:
        group["lr"] = 0.5 * group["rate_factor"]
    layer.weight.grad, layer.bias.grad = torch.ones(1, 1), torch.ones(1)
    optimizer.step()
    assert layer.weight.item() == pytest.approx(2 - 0.5 * (1 + 0.1 * 2))
    assert layer.bias.item() == pytest.approx(3 - 0.5 * 2 * 1)


def test_a_constant_warm_up_stays_at_its_start_until_it_ends():
    training = fcos_training()
    assert training.clip_norm is None
    num_steps = training.num_steps(117_266)
    rates = [learning_rate(training, step, num_steps) for step in (0, 250, 499, 500, 59_000, 81_000)]
    assert rates == pytest.approx([0.01 / 3, 0.01 / 3, 0.01 / 3, 0.01, 0.001, 0.0001])


def test_of_many_faulty_objects_the_first_are_told_and_the_others_counted(tmp_path, capsys):
    for split, num in (("train", 3), ("val", 1)):
        SyntheticDataset(64, num).write(tmp_path / "data", split)
    annotations = tmp_path / "data" / "annotations" / "instances_train2017.json"
    content = json.loads(annotations.read_text())
    first = content["annotations"][0]
    content["annotations"] += [{**first, "id": 1000 + n, "bbox": [1, 1, 0, n]} for n in range(20)]
    annotations.write_text(json.dumps(content))
    train(plan("table2/baseline", "smoke", data=str(tmp_path / "data"), steps=1), tmp_path / "run", device=CPU)
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 9
    assert warnings[-1] == f"warning: … and 12 more; `augfpn data check {tmp_path / 'data'}` shows all of them."
