"""Two processes (gloo, on the CPU) against one, with the same images a step."""

import json
import os
import socket
from dataclasses import replace

import pytest
import torch
import torch.multiprocessing
from torch import nn

from augfpn.data import SyntheticDataset, evaluation_batches, training_batches
from augfpn.data.loading import Batch
from augfpn.detectors import build_from_config
from augfpn.detectors.batch_norm import SharedBatchNorm2d, share_statistics
from augfpn.engine import Run
from augfpn.engine.evaluate import detect_all
from augfpn.engine.ranks import Ranks, joined
from augfpn.engine.step import Losses, TrainingStep, backpropagate
from augfpn.errors import UserError
from augfpn.experiments import plan
from augfpn.experiments.config import DataConfig, SyntheticConfig, TrainingConfig
from augfpn.structures import Images, Targets

CPU = torch.device("cpu")
# All four detectors, with AugFPN; the last one in torchvision's conventions, which divide the losses by other counts.
DETECTORS = ("faster_rcnn", "mask_rcnn", "retinanet", "fcos")
NUM_STEPS = 3


def model_of(detector):
    torch.manual_seed(0)
    config = plan(f"table1/{detector}_r50_augfpn_1x", "smoke").model
    return build_from_config(config, 6, short_side=64, long_side=128).train()


def images_of_step(step):
    """Four synthetic images: the first two with objects, at most one in the second, the others without."""
    dataset = SyntheticDataset(64, 12, masks=True)
    samples = [dataset[position] for position in range(4 * step, 4 * step + 4)]
    kept = [len(samples[0].boxes), min(1, len(samples[1].boxes)), 0, 0]
    return [
        replace(sample, boxes=sample.boxes[:num], labels=sample.labels[:num], masks=sample.masks[:num])
        for sample, num in zip(samples, kept, strict=True)
    ]


def batch_of(samples):
    targets = Targets.pad(
        [s.boxes for s in samples], [s.labels for s in samples], [s.masks for s in samples], size=(64, 64)
    )
    ids = tuple(sample.image_id for sample in samples)
    images = Images.pad([sample.image for sample in samples])
    return Batch(images, targets, ids, images.sizes)


def steps_of(detector, ranks, parts=1, activation_checkpointing=False):
    """The losses and gradients of each step, and the weights in the end."""
    model = model_of(detector)
    training = TrainingConfig(learning_rate=0.01, clip_norm=35.0)
    make_step = TrainingStep(model, training, ranks, activation_checkpointing=activation_checkpointing)
    seen = []
    for step in range(NUM_STEPS):
        torch.manual_seed(step)
        samples = images_of_step(step)
        num = 4 // (ranks.num * parts)
        shares = [samples[(part * ranks.num + ranks.rank) * num :][:num] for part in range(parts)]
        values = make_step([batch_of(share) for share in shares], 0.01)
        gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
        seen.append(({name: float(value) for name, value in values.items()}, gradients))
    return seen, model.state_dict()


def detections_of(folder, ranks):
    """Of five images in batches of two: one rank has three of them, the other two."""
    return detect_all(Run(folder / "run"), model_of("mask_rcnn").eval(), SyntheticDataset(64, 5), CPU, 2, ranks)


def of_a_rank(rank, folder):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": (folder / "port").read_text()}
    torch.set_num_threads(1)
    with joined(CPU, timeout=120) as (ranks, _):
        of_detectors = {detector: steps_of(detector, ranks) for detector in DETECTORS}
        of_detectors["faster_rcnn in two parts"] = steps_of("faster_rcnn", ranks, parts=2)
        of_detectors["faster_rcnn with activation checkpointing"] = steps_of("faster_rcnn", ranks, 1, True)
        torch.save(of_detectors, folder / f"{rank}.pt")
        (folder / f"{rank}.json").write_text(json.dumps(detections_of(folder, ranks)))
        assert [ranks.any(rank == 1), ranks.any(False)] == [True, False]
        assert ranks.gather(rank) == [0, 1]
        assert ranks.gather_to_main(rank) == ([0, 1] if rank == 0 else [])


@pytest.fixture(autouse=True)
def one_thread():
    """As the ranks have: several threads round in another way, which after some steps is seen."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (folder / "port").write_text(str(free.getsockname()[1]))
    Run.create(folder / "run", plan("table1/mask_rcnn_r50_augfpn_1x", "smoke"), SyntheticDataset.categories)
    torch.multiprocessing.spawn(of_a_rank, (folder,), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def of_two_ranks(two_ranks):
    return [torch.load(two_ranks / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize(
    "detector", [*DETECTORS, "faster_rcnn in two parts", "faster_rcnn with activation checkpointing"]
)
def test_two_ranks_learn_what_one_does_though_one_of_them_sees_no_object(of_two_ranks, detector):
    name, parts = detector.split(" ")[0], 2 if "parts" in detector else 1
    expected, weights = steps_of(name, Ranks(), parts)
    (first, of_first), (second, of_second) = (of_rank[detector] for of_rank in of_two_ranks)
    for (losses, gradients), (one, of_one), (other, of_other) in zip(expected, first, second, strict=True):
        # Sums of each rank's own images over the same counts: their mean is that of the whole batch.
        assert {name: (one[name] + other[name]) / 2 for name in losses} == pytest.approx(losses, rel=1e-4, abs=1e-6)
        assert one["loss"] != pytest.approx(other["loss"], rel=1e-4), "the ranks saw the same images"
        torch.testing.assert_close(of_one, of_other, rtol=0, atol=0)
        torch.testing.assert_close(of_one, gradients, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(of_first, of_second, rtol=0, atol=0)
    torch.testing.assert_close(of_first, weights, rtol=1e-4, atol=1e-4)
    start = model_of(name).state_dict()
    assert any((weights[key].float() - start[key].float()).abs().max() > 1e-3 for key in weights), "nothing was learnt"


def test_two_ranks_detect_what_one_does_each_image_once_and_in_order(two_ranks):
    first, second = (json.loads((two_ranks / f"{rank}.json").read_text()) for rank in range(2))
    expected = detections_of(two_ranks, Ranks())
    assert {entry["image_id"] for entry in expected} == {1, 2, 3, 4, 5}
    assert first == json.loads(json.dumps(expected))
    assert second == []


@pytest.mark.parametrize("parts", [1, 2])
def test_ranks_and_parts_have_the_images_of_a_step_once_in_its_order(parts):
    dataset = SyntheticDataset(32, 6)
    config = DataConfig(synthetic=SyntheticConfig(size=32, num_train=6, num_val=1))
    settings = {"seed": 0, "batch_size": 4, "first_step": 1, "num_steps": 3}
    whole = [batch.image_ids for batch in training_batches(dataset, config, **settings)]
    shares = [
        [b.image_ids for b in training_batches(dataset, config, **settings, parts=parts, rank=rank, num_ranks=2)]
        for rank in range(2)
    ]
    in_turns = [id for pair in zip(*shares, strict=True) for share in pair for id in share]
    assert in_turns == [id for ids in whole for id in ids]
    assert {len(share) for of_rank in shares for share in of_rank} == {2 // parts}


@pytest.mark.parametrize("num", [1, 5, 8])
def test_each_image_is_evaluated_by_one_rank_in_the_same_batch(num):
    dataset = SyntheticDataset(32, num)
    config = DataConfig(synthetic=SyntheticConfig(size=32, num_train=1, num_val=num))
    whole = [batch.image_ids for batch in evaluation_batches(dataset, config, batch_size=2)]
    shares = [
        [batch.image_ids for batch in evaluation_batches(dataset, config, batch_size=2, rank=rank, num_ranks=2)]
        for rank in range(2)
    ]
    assert sorted(shares[0] + shares[1]) == whole


def test_a_batch_in_parts_has_the_mean_of_their_gradients():
    model = model_of("faster_rcnn")
    batches = [batch_of(images_of_step(0)[:2]), batch_of(images_of_step(1)[:2])]
    gradients = []
    for parts in ([batches[0]], [batches[1]], batches):
        model.zero_grad()
        # Each part draws its own random numbers; here the sampling takes what there is.
        torch.manual_seed(0)
        if parts is not batches:
            model.load_state_dict(model_of("faster_rcnn").state_dict())
            if parts[0] is batches[1]:
                with torch.no_grad():
                    model.losses(batches[0].images, batches[0].targets)
        else:
            model.load_state_dict(model_of("faster_rcnn").state_dict())
        backpropagate(Losses(model), parts, None)
        gradients.append({name: one.grad.clone() for name, one in model.named_parameters()})
    for name, together in gradients[2].items():
        torch.testing.assert_close(together, (gradients[0][name] + gradients[1][name]) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("detector", DETECTORS)
def test_what_is_computed_again_for_the_gradients_changes_nothing(detector):
    ends = []
    for enabled in (False, True):
        model = model_of(detector)
        step = TrainingStep(model, TrainingConfig(), activation_checkpointing=enabled)
        for number in range(2):
            torch.manual_seed(number)
            step([batch_of(images_of_step(number))], 0.01)
        ends.append(model.state_dict())
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=0)


@pytest.mark.parametrize("detector", DETECTORS)
def test_mixed_precision_has_nearly_the_same_losses(detector):
    batch, losses = batch_of(images_of_step(0)), []
    for enabled in (False, True):
        model = model_of(detector)
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found = model.losses(batch.images, batch.targets)
        losses.append({name: loss.item() for name, loss in found.items()})
    assert losses[1] != losses[0]
    # The sum: which RoIs are drawn for Consistent Supervision can change with a score's last digit.
    assert sum(losses[1].values()) == pytest.approx(sum(losses[0].values()), rel=0.05)


def test_batch_norm_that_cannot_be_shared_is_said_to_be_so():
    with pytest.raises(UserError, match="1 is a BatchNorm1d, whose statistics cannot be shared"):
        share_statistics(nn.Sequential(nn.BatchNorm2d(1), nn.BatchNorm1d(1)))
    model = nn.Sequential(nn.BatchNorm2d(1))
    share_statistics(model)
    assert isinstance(model[0], SharedBatchNorm2d)
