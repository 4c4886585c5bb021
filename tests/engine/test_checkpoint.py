"""Checkpoints that are damaged, the best one, and what a run is like that goes on from them."""

import hashlib
import json
import os
import signal
import sys
import threading
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from augfpn.engine import Execution, Run, evaluate, train
from augfpn.engine.checkpoint import Checkpoint, CheckpointError, load_last_checkpoint, save_checkpoint
from augfpn.engine.interruption import Interruption
from augfpn.engine.runs import RunError, alone
from augfpn.errors import Interrupted, UserError
from augfpn.experiments import plan
from augfpn.files import WriteError

CPU = torch.device("cpu")
# Their names in the package are those of the functions.
TRAIN, EVALUATE = (sys.modules[f"augfpn.engine.{name}"] for name in ("train", "evaluate"))


def config_of(**training):
    config = plan("table2/baseline", "smoke", steps=8)
    # Lines and checkpoints at different steps, so that some of what is not told yet is in a checkpoint.
    return replace(config, training=replace(config.training, log_every=3, checkpoint_every=2, **training))


def what_is_left(run):
    """All that a training has computed."""
    timed = ("seconds", "images_per_second", "waiting_seconds", "memory_mb")
    history = [{name: value for name, value in line.items() if name not in timed} for line in run.history()]
    return history, {name: value.numpy().tobytes() for name, value in load_file(run.weights).items()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = train(config_of(), tmp_path_factory.mktemp("undisturbed") / "run", device=CPU)
    return what_is_left(run)


class Killed(BaseException):
    """In the place of SIGKILL: nothing catches it."""


@pytest.fixture
def unfinished(tmp_path, monkeypatch):
    """A run that was killed in its seventh step, with checkpoints of steps 4 and 6."""

    def dies(config, step, num_steps, real=TRAIN.learning_rate):
        if step == 6:
            raise Killed
        return real(config, step, num_steps)

    with monkeypatch.context() as patched:
        patched.setattr(TRAIN, "learning_rate", dies)
        with pytest.raises(Killed):
            train(config_of(), tmp_path / "run", device=CPU)
    run = Run(tmp_path / "run")
    assert run.checkpoint_steps == (4, 6)
    return run


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-1000])


def bit_turned(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def emptied(path):
    path.write_bytes(b"")


def without_its_checksum_and_cut_off(path):
    cut_off(path)
    path.with_name(f"{path.name}.sha256").unlink()


DAMAGES = [cut_off, bit_turned, emptied, without_its_checksum_and_cut_off]


@pytest.mark.parametrize("damage", [None, *DAMAGES])
def test_a_run_goes_on_from_the_last_checkpoint_that_is_whole(unfinished, undisturbed, damage, capsys):
    newest = unfinished.path / "checkpoints" / "step_00000006.pt"
    if damage:
        damage(newest)
    train(config_of(), unfinished.path, resume=True, device=CPU)
    assert what_is_left(unfinished) == undisturbed
    warned = capsys.readouterr().err
    if damage:
        assert f"warning: The checkpoint {newest} is damaged" in warned
        assert "That of step 4 is taken; this is now step_00000006.pt.damaged." in warned
        assert newest.with_name("step_00000006.pt.damaged").is_file()
    else:
        assert "damaged" not in warned


def test_a_run_whose_checkpoints_are_all_damaged_says_so_and_leaves_them(unfinished):
    for step in (4, 6):
        bit_turned(unfinished.path / "checkpoints" / f"step_{step:08d}.pt")
    before = sorted(os.listdir(unfinished.path / "checkpoints"))
    with pytest.raises(
        CheckpointError, match=r"No checkpoint in .* can be read.*step_00000006.*step_00000004.*Restore"
    ):
        train(config_of(), unfinished.path, resume=True, device=CPU)
    assert sorted(os.listdir(unfinished.path / "checkpoints")) == before


def test_a_disk_that_does_not_answer_is_no_damage(unfinished, monkeypatch):
    def fails(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(OSError, match="Input/output error"):
        load_last_checkpoint(unfinished.path / "checkpoints", CPU)
    assert unfinished.checkpoint_steps == (4, 6)


def test_a_checkpoint_of_another_model_is_not_restored(unfinished):
    folder = unfinished.path / "checkpoints"
    step = load_last_checkpoint(folder, CPU)
    save_checkpoint(folder, replace(step, step=7, model={"conv.weight": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="The checkpoint of step 7 is of another model"):
        train(config_of(), unfinished.path, resume=True, device=CPU)


def test_a_checksum_is_as_sha256sum_writes_it(unfinished):
    path = unfinished.path / "checkpoints" / "step_00000006.pt"
    digest, name = path.with_name(f"{path.name}.sha256").read_text().split()
    assert (digest, name) == (hashlib.sha256(path.read_bytes()).hexdigest(), path.name)


def test_a_pickle_in_the_place_of_a_checkpoint_is_not_run(unfinished, tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    folder = unfinished.path / "checkpoints"
    for step in (4, 6):
        torch.save(Attack(), folder / f"step_{step:08d}.pt")
        (folder / f"step_{step:08d}.pt.sha256").unlink()
    with pytest.raises(CheckpointError, match="No checkpoint"):
        load_last_checkpoint(folder, CPU)
    assert not (tmp_path / "attacked").exists()


def test_a_disk_that_is_full_leaves_the_checkpoint_before(unfinished, undisturbed, monkeypatch):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal, so that the write fails as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(WriteError, match=r"step_00000007\.pt cannot be written: File too large\. Have the limit"):
            save_checkpoint(
                unfinished.path / "checkpoints",
                replace(load_last_checkpoint(unfinished.path / "checkpoints", CPU), step=7),
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path for path in (unfinished.path / "checkpoints").iterdir() if path.name.startswith(".")] == []
    train(config_of(), unfinished.path, resume=True, device=CPU)
    assert what_is_left(unfinished) == undisturbed


def test_what_a_killed_process_had_begun_to_write_is_removed(unfinished):
    leftovers = [
        unfinished.path / name for name in ("checkpoints/.step_00000007.pt.4711.tmp", ".metrics.jsonl.4711.tmp")
    ]
    for leftover in leftovers:
        leftover.write_text("half")
    train(config_of(), unfinished.path, resume=True, device=CPU)
    assert not any(leftover.exists() for leftover in leftovers)


@pytest.fixture
def ap_by_step(monkeypatch):
    """The AP that evaluations on the way give, in the place of the model's, which learns nothing in so few steps."""
    given = {2: 0.3, 4: 0.2, 6: None}
    measured = []

    def record(run, step, metrics, real=Run.record_evaluation):
        measured.append(step)
        real(run, step, {**metrics, "AP": given[step]})

    monkeypatch.setattr(Run, "record_evaluation", record)
    return measured


def test_the_last_two_and_the_best_checkpoint_are_kept(tmp_path, ap_by_step, undisturbed):
    run = train(config_of(), tmp_path / "run", execution=Execution(evaluate_every=2), device=CPU)
    assert ap_by_step == [2, 4, 6]
    assert (run.evaluated_steps, run.best_step) == ((2, 4, 6), 2)
    assert run.checkpoint_steps == (2, 4, 6)
    assert what_is_left(run) == undisturbed, "evaluations on the way changed the training"


def test_evaluations_load_with_the_workers_that_were_asked_for(tmp_path, monkeypatch):
    asked = []

    def noted(*arguments, real=EVALUATE.evaluation_batches, **options):
        asked.append(options["num_workers"])
        return real(*arguments, **options)

    monkeypatch.setattr(EVALUATE, "evaluation_batches", noted)
    execution = Execution(workers=0, evaluate_every=4)
    run = train(config_of(num_workers=2), tmp_path / "run", execution=execution, device=CPU)
    evaluate(run, CPU, workers=0)
    assert asked == [0, 0]


def test_an_evaluation_that_was_stopped_is_made_first(tmp_path, ap_by_step, undisturbed, monkeypatch):
    def dies(*_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(EVALUATE, "coco_metrics", dies)
        with pytest.raises(Killed):
            train(config_of(), tmp_path / "run", execution=Execution(evaluate_every=2), device=CPU)
    run = Run(tmp_path / "run")
    assert (run.evaluated_steps, run.checkpoint_steps) == ((), (2,))
    train(config_of(), run.path, resume=True, execution=Execution(evaluate_every=2), device=CPU)
    assert ap_by_step == [2, 4, 6]
    assert what_is_left(run) == undisturbed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_ends_the_training_behind_its_step_with_a_checkpoint(tmp_path, undisturbed, number, monkeypatch):
    def signalled(config, step, num_steps, real=TRAIN.learning_rate):
        if step == 4:
            signal.raise_signal(number)
        return real(config, step, num_steps)

    before = signal.getsignal(number)
    with monkeypatch.context() as patched:
        patched.setattr(TRAIN, "learning_rate", signalled)
        with pytest.raises(Interrupted, match=rf"{number.name}: stopped after step 5 of 8, with a checkpoint"):
            train(config_of(), tmp_path / "run", device=CPU)
    assert signal.getsignal(number) == before
    run = Run(tmp_path / "run")
    assert run.checkpoint_steps == (4, 5)
    train(config_of(), run.path, resume=True, device=CPU)
    assert what_is_left(run) == undisturbed


def test_a_second_interrupt_ends_it_at_once():
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interruption.requested


def test_in_a_thread_signals_stay_as_they_are():
    seen = []

    def enter():
        with Interruption():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]


def test_an_evaluation_stops_behind_its_batch_and_leaves_no_figures(unfinished, monkeypatch):
    run = train(config_of(), unfinished.path, resume=True, device=CPU)
    with monkeypatch.context() as patched:
        patched.setattr(EVALUATE, "coco_results", lambda *_: signal.raise_signal(signal.SIGTERM) or [])
        with pytest.raises(Interrupted, match="SIGTERM: stopped while it was evaluated"):
            evaluate(run, CPU, batch_size=1)
    assert not run.is_evaluated
    assert not (run.path / "detections.json").exists()


@pytest.mark.parametrize("after_the_last_batch", [False, True])
def test_an_evaluation_on_the_way_passes_a_signal_on_to_the_training(
    tmp_path, undisturbed, monkeypatch, after_the_last_batch
):
    def signalled(*arguments, real=EVALUATE.coco_metrics if after_the_last_batch else EVALUATE.coco_results):
        signal.raise_signal(signal.SIGTERM)
        return real(*arguments)

    where = "coco_metrics" if after_the_last_batch else "coco_results"
    with monkeypatch.context() as patched:
        patched.setattr(EVALUATE, where, signalled)
        with pytest.raises(Interrupted, match="SIGTERM: stopped"):
            train(config_of(), tmp_path / "run", execution=Execution(evaluate_every=2), device=CPU)
    run = Run(tmp_path / "run")
    assert run.checkpoint_steps == (2,)
    train(config_of(), run.path, resume=True, execution=Execution(evaluate_every=2), device=CPU)
    assert run.evaluated_steps == (2, 4, 6)
    assert what_is_left(run) == undisturbed


def test_a_process_that_waits_for_another_one_can_be_ended(tmp_path):
    # Before there is anything to finish, signals are as they always are.
    def interrupts(*_, **__):
        raise KeyboardInterrupt

    with alone(tmp_path / "run"), pytest.MonkeyPatch.context() as patched:
        patched.setattr("builtins.print", interrupts)
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            train(config_of(), tmp_path / "run", resume=True, device=CPU)
        assert signal.getsignal(signal.SIGTERM) == before


def test_too_little_memory_is_told_with_the_batch_and_the_remedies(tmp_path, monkeypatch):
    def too_much(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr("augfpn.engine.step.TrainingStep.__call__", too_much)
    with pytest.raises(UserError) as caught:
        train(config_of(), tmp_path / "run", device=CPU)
    for part in (
        "Out of memory at step 1, with 2 images of 64 × 64 pixels",
        "(ids ",
        "--accumulate 2",
        "--activation-checkpointing",
    ):
        assert part in str(caught.value)


def test_a_real_allocation_that_is_too_large_is_told_likewise(tmp_path, monkeypatch):
    monkeypatch.setattr("augfpn.engine.step.TrainingStep.__call__", lambda *_: torch.empty(2**60))
    with pytest.raises(UserError, match="Out of memory at step 1"):
        train(config_of(), tmp_path / "run", device=CPU)


def test_a_run_that_another_process_trains_is_not_trained_by_several_ranks(tmp_path):
    first, second = alone(tmp_path / "run"), alone(tmp_path / "run", waiting=False)
    with first, pytest.raises(RunError, match="Another process trains"), second:
        pass


@pytest.mark.parametrize(
    ("execution", "message"),
    [
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"evaluate_every": 0}, "evaluate_every must be at least 1"),
        ({"workers": -1}, "cannot be -1 workers"),
        ({"accumulate": 3}, "A batch of 2 images cannot be shared evenly between 3 parts"),
    ],
)
def test_an_execution_that_cannot_be_is_refused(tmp_path, execution, message):
    with pytest.raises(UserError, match=message):
        train(config_of(), tmp_path / "run", execution=Execution(**execution), device=CPU)


def test_lines_tell_speed_waiting_and_memory(unfinished):
    line = unfinished.history()[0]
    assert line["images_per_second"] > 0
    assert line["waiting_seconds"] >= 0
    assert line["memory_mb"] > 10


def test_lines_stand_in_tensorboard_too_where_it_is_installed(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(config_of(), tmp_path / "run", device=CPU)
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    for tag, name in (("loss/loss_classifier", "loss_classifier"), ("training/learning_rate", "learning_rate")):
        assert [
            (e.step, pytest.approx(line[name])) for e, line in zip(events.Scalars(tag), run.history(), strict=True)
        ] == [(line["step"], line[name]) for line in run.history()]


def test_a_checkpoint_from_before_there_were_unreported_values_is_read(tmp_path):
    path = tmp_path / "step_00000003.pt"
    torch.save({"step": 3, "seconds": 1.5, "model": {}, "optimizer": {}}, path)
    assert load_last_checkpoint(tmp_path, CPU) == Checkpoint(3, 1.5, {}, {}, [])


def test_the_history_is_json_lines(unfinished):
    lines = (unfinished.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 6]
