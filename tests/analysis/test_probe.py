import pytest
import torch
from torchvision.ops import roi_align

from augfpn.analysis.probe import ObjectFeatures, object_features, objects_of_run, probe_of, train_probe
from augfpn.analysis.semantic_gap import gap_between, semantic_gaps
from augfpn.data.dataset import SelectedImages
from augfpn.data.loading import Batch, evaluation_batches, open_dataset
from augfpn.engine import train
from augfpn.errors import UserError
from augfpn.experiments import plan
from augfpn.structures import Images, Targets

CPU = torch.device("cpu")


def test_objects_are_pooled_from_every_lateral_and_padding_is_none(small_model):
    model = small_model("table2/cs")
    boxes = [torch.tensor([[4.0, 6.0, 40.0, 50.0]]), torch.tensor([[0.0, 0.0, 60.0, 30.0], [10.0, 10.0, 20.0, 64.0]])]
    targets = Targets.pad(boxes, [torch.tensor([3]), torch.tensor([1, 2])])
    images = Images.pad(list(torch.rand(2, 3, 64, 64)))
    batch = Batch(images, targets, (1, 2), images.sizes)
    objects = object_features(model, [batch], CPU)
    assert objects.labels.tolist() == [3, 1, 2]
    assert objects.levels == ("M2", "M3", "M4", "M5")
    with torch.no_grad():
        laterals = model.eval().features(images).laterals
        for level, (lateral, stride) in enumerate(zip(laterals, (4, 8, 16, 32), strict=True)):
            pooled = roi_align(lateral, boxes, 7, 1 / stride, sampling_ratio=2)
            torch.testing.assert_close(objects.features[:, level], pooled.mean(dim=(2, 3)), atol=1e-5, rtol=1e-4)
            seen = model.consistent_supervision.head(pooled).logits.argmax(dim=1)
            assert torch.equal(objects.predictions[:, level], seen)


def test_images_without_objects_are_no_error_unless_there_is_no_object_at_all(small_model):
    images = Images.pad([torch.rand(3, 64, 64)])
    empty = Batch(images, Targets.pad([torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)]), (1,), images.sizes)
    with pytest.raises(UserError, match="these images have none"):
        object_features(small_model("table2/baseline"), [empty], CPU)
    one = Targets.pad([torch.tensor([[4.0, 6.0, 40.0, 50.0]])], [torch.tensor([3])])
    with pytest.raises(UserError, match="these images have 1"):
        object_features(small_model("table2/baseline"), [Batch(images, one, (1,), images.sizes)], CPU)
    config = plan("table2/baseline", "smoke").data
    batches = list(evaluation_batches(open_dataset(config, "val"), config, batch_size=4))
    with_empty = object_features(small_model("table2/baseline"), [empty, *batches], CPU)
    assert len(with_empty.labels) == sum(int(batch.targets.valid.sum()) for batch in batches)


def test_the_probe_of_a_run_is_the_one_of_its_semantic_gap(tmp_path):
    run = train(plan("table2/baseline", "smoke"), tmp_path / "run", device=CPU)
    model = run.load_model(CPU)
    config = run.config.data
    num_val = len(open_dataset(config, "val"))
    assert len(open_dataset(config, "train")) > num_val
    for num_images, used in ((None, num_val), (2, 2), (100, num_val)):
        probe = probe_of(run, model, CPU, num_images=num_images)
        first = SelectedImages(open_dataset(config, "train"), range(used))
        by_hand = train_probe(object_features(model, evaluation_batches(first, config, batch_size=8), CPU), 6)
        assert torch.equal(probe.linear.weight, by_hand.linear.weight)
        val = objects_of_run(run, model, CPU, "val", num_images=num_images)
        expected = gap_between(val, probe.classes(val.features), "probe")
        assert semantic_gaps(run, CPU, num_images=num_images)["probe"].to_dict() == expected.to_dict()


def test_the_probes_probabilities_are_those_of_its_classes():
    features = torch.randn(50, 2, 5, generator=torch.Generator().manual_seed(0))
    labels = features[:, 0].argmax(dim=1) + 1
    probe = train_probe(ObjectFeatures(features, labels, None, ("M2", "M3")), 5)
    probabilities = probe.probabilities(features)
    assert probabilities.shape == (50, 2, 5)
    torch.testing.assert_close(probabilities.sum(dim=2), torch.ones(50, 2, dtype=torch.float64))
    assert torch.equal(probabilities.argmax(dim=2) + 1, probe.classes(features))
    assert not probabilities.requires_grad
