import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from augfpn import build_detector
from augfpn.data.loading import Batch
from augfpn.engine.train import backpropagate
from augfpn.structures import Images, Targets

COMPONENTS = ("cs", "rfa", "srs")
ROWS = ["table2/baseline"] + [
    f"table2/{'+'.join(some)}" for num in (1, 2, 3) for some in itertools.combinations(COMPONENTS, num)
]


def batch(num_objects=(3, 0)):
    """Two images of 64 × 64, the second narrower than the batch, with so many objects each."""
    torch.manual_seed(1)
    images = Images.pad([torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), torch.zeros(3, 60, 40).byte()])
    corners = [torch.rand(num, 2) * 20 for num in num_objects]
    boxes = [torch.cat([corner, corner + 10 + torch.rand_like(corner) * 10], dim=1) for corner in corners]
    return images, Targets.pad(boxes, [torch.randint(1, 7, (num,)) for num in num_objects])


@pytest.mark.parametrize("experiment", ROWS)
def test_every_component_is_an_object_that_is_there_or_not(small_model, experiment):
    model = small_model(experiment)
    components = experiment.split("/")[1].split("+")
    assert (model.consistent_supervision is not None) == ("cs" in components)
    assert (model.pyramid.residual_feature_augmentation is not None) == ("rfa" in components)
    assert (type(model.roi_pooling).__name__ == "SoftRoISelection") == ("srs" in components)
    losses = model.losses(*batch())
    assert {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"} <= losses.keys()
    assert ("loss_aux_classifier" in losses) == ("cs" in components)
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("experiment", ["table2/baseline", "table2/cs+rfa+srs"])
def test_every_parameter_that_is_trained_receives_a_gradient(small_model, experiment):
    model = small_model(experiment)
    sum(model.losses(*batch()).values()).backward()
    without = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert without == []


@pytest.mark.parametrize("experiment", ["table2/baseline", "table2/cs+rfa+srs"])
def test_the_losses_trace_as_one_graph_and_are_the_same(small_model, experiment):
    model = small_model(experiment)
    images, targets = batch()

    compiled = torch.compile(model.losses, fullgraph=True, backend="eager")
    torch.manual_seed(0)
    traced = compiled(images, targets)
    torch.manual_seed(0)
    torch.testing.assert_close(traced, model.losses(images, targets))


@pytest.mark.parametrize("experiment", ["table2/baseline", "table2/cs+rfa+srs"])
def test_the_whole_training_step_traces_as_one_graph_with_the_same_gradients(small_model, experiment):
    # From the pixels to the clipped gradients; the optimiser's own step is PyTorch's to compile.
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        pytest.skip(f"torch {torch.__version__} cannot trace backward(); the losses alone are traced above")
    images, targets = batch()
    whole = Batch(images, targets, (1, 2), images.sizes)
    gradients = []
    for step in (backpropagate, torch.compile(backpropagate, fullgraph=True, backend="eager")):
        model = small_model(experiment)
        torch.manual_seed(0)
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            step(model, whole, 0.5)
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("experiment", ["table2/baseline", "table2/cs+rfa+srs"])
def test_inference_traces_as_one_graph_and_is_the_same(small_model, experiment):
    model = small_model(experiment).eval()
    images, _ = batch()
    compiled = torch.compile(model.detect, fullgraph=True, backend="eager")(images)
    detections = model.detect(images)
    torch.testing.assert_close(compiled.boxes, detections.boxes)
    assert torch.equal(compiled.valid, detections.valid)


def test_supervision_is_not_run_at_inference_and_can_be_taken_away(small_model):
    model = small_model("table2/cs").eval()
    model.consistent_supervision.forward = lambda *_: pytest.fail("Consistent Supervision ran at inference")
    images, _ = batch()
    with_it = model.detect(images)
    without = small_model("table2/baseline").eval()
    missing, unexpected = without.load_state_dict(model.state_dict(), strict=False)
    assert missing == []
    assert {name.split(".")[0] for name in unexpected} == {"consistent_supervision"}
    torch.testing.assert_close(with_it.boxes, without.detect(images).boxes)


@pytest.mark.parametrize("experiment", ["table2/baseline", "table2/cs+rfa+srs"])
@pytest.mark.parametrize("size", [64, 512])
def test_everything_stays_on_the_device_of_the_model(small_model, experiment, size):
    """On tensors that are said to be on a GPU and hold nothing: a tensor left on the host would be an error."""
    with FakeTensorMode():
        with torch.device("cuda"):
            model = small_model(experiment)
        images = Images(torch.zeros(2, 3, size, size, device="cuda"), torch.full((2, 2), size, device="cuda"))
        targets = Targets(torch.zeros(2, 8, 4, device="cuda"), torch.ones(2, 8, dtype=torch.int64, device="cuda"))
        assert all(loss.device.type == "cuda" for loss in model.losses(images, targets).values())
        assert model.eval().detect(images).boxes.device.type == "cuda"


@pytest.mark.parametrize(
    ("boxes", "labels", "expected"),
    [
        (torch.tensor([[5, 5, 50, 50]]), torch.tensor([1]), r"targets\[0\]\['boxes'\] must be finite floats"),
        (torch.tensor([[5.0, 5.0, float("nan"), 50.0]]), torch.tensor([1]), "must be finite floats"),
        (torch.tensor([[5.0, 5.0, 50.0, 50.0]]), torch.tensor([1, 2]), r"of shape \(2, 4\)"),
        (torch.tensor([[5.0, 5.0, 50.0, 50.0]]), torch.tensor([0]), r"must be in 1…6 \(0 is background\)"),
        (torch.tensor([[5.0, 5.0, 50.0, 50.0]]), torch.tensor([7]), "found 7 to 7"),
    ],
)
def test_targets_that_make_no_sense_are_refused_at_the_door(small_model, boxes, labels, expected):
    with pytest.raises(ValueError, match=expected):
        small_model("table2/baseline")([torch.rand(3, 64, 64)], [{"boxes": boxes, "labels": labels}])


@pytest.mark.parametrize("shape", [(33, 500), (2, 300), (700, 4), (1, 1)])
def test_images_of_any_shape_are_detected_in(small_model, shape):
    [found] = small_model("table2/cs+rfa+srs").eval()([torch.rand(3, *shape)])
    assert found["boxes"].shape[1] == 4


def test_the_public_surface_is_torchvisions(small_model):
    model = small_model("table2/cs+rfa+srs")
    images = [torch.rand(3, 50, 80), torch.rand(3, 33, 120)]
    targets = [
        {"boxes": torch.tensor([[5.0, 5.0, 40.0, 40.0]]), "labels": torch.tensor([2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    losses = model(images, targets)
    assert all(loss.ndim == 0 for loss in losses.values())
    model.eval()
    model.box_rules = type(model.box_rules)(score_threshold=0.0)
    found = model(images)
    assert len(found) == 2
    for image, detections in zip(images, found, strict=True):
        assert detections["boxes"].shape == (len(detections["labels"]), 4)
        assert (detections["scores"].diff() <= 0).all()
        assert detections["boxes"].amax() > 0
        assert (detections["boxes"][:, 2] <= image.shape[2] + 1e-3).all()
        assert (detections["boxes"][:, 3] <= image.shape[1] + 1e-3).all()
        assert ((detections["labels"] >= 1) & (detections["labels"] <= 6)).all()


def test_training_without_targets_is_refused_with_what_to_do(small_model):
    with pytest.raises(ValueError, match=r"\.eval\(\)"):
        small_model("table2/baseline")([torch.rand(3, 64, 64)])


def test_a_batch_gives_the_same_detections_as_its_images_one_by_one(small_model):
    model = small_model("table2/cs+rfa+srs").eval()
    model.box_rules = type(model.box_rules)(score_threshold=0.0)
    torch.manual_seed(2)
    images = [torch.rand(3, 64, 64) for _ in range(3)]
    together = model(images)
    for image, detections in zip(images, together, strict=True):
        [alone] = model([image])
        torch.testing.assert_close(detections["boxes"], alone["boxes"], atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(detections["scores"], alone["scores"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("num_objects", [(0, 0), (1, 0), (300, 2)])
def test_any_number_of_objects_is_trained(small_model, num_objects):
    losses = small_model("table2/cs+rfa+srs").losses(*batch(num_objects))
    assert all(loss.isfinite() for loss in losses.values())


def test_pretrained_weights_that_cannot_be_had_are_named_with_what_to_do(monkeypatch, tmp_path):
    import huggingface_hub

    def no_network(*_):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", no_network)
    monkeypatch.setenv("AUGFPN_WEIGHTS", str(tmp_path))
    with pytest.raises(ValueError, match=r"'resnet50.tv_in1k' could not be fetched.*put it at"):
        build_detector("table2/baseline", num_classes=80)


def test_a_detector_can_be_built_by_the_papers_name():
    model = build_detector("table2/cs+rfa+srs", num_classes=80, pretrained=False)
    frozen = {name for name, parameter in model.backbone.named_parameters() if not parameter.requires_grad}
    assert {"body.conv1.weight", "body.layer1.0.conv1.weight"} <= frozen
    assert "body.layer2.0.conv1.weight" not in frozen
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    fusion = sum(parameter.numel() for parameter in model.roi_pooling.parameters())
    assert fusion == 271_620
