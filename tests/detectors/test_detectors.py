import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from augfpn import build_detector, build_from_config, plan
from augfpn.data.loading import Batch
from augfpn.engine.step import Losses, backpropagate
from augfpn.experiments import find_experiment
from augfpn.experiments.conventions import TORCHVISION
from augfpn.structures import Images, Targets

DETECTORS = [f"table1/{detector}_r50_augfpn_1x" for detector in ("faster_rcnn", "mask_rcnn", "retinanet", "fcos")]
BASELINE = "table2/baseline"
# Between them, every module that the detectors above have not.
ABLATIONS = ["table4/psp_psp", "table4/sum_gmp", "table5/srs_max", "table5/srs_acf", "table5/panet_max"]
COMPONENTS = ("cs", "rfa", "srs")
ROWS = ["table2/baseline"] + [
    f"table2/{'+'.join(some)}" for num in (1, 2, 3) for some in itertools.combinations(COMPONENTS, num)
]


def batch(num_objects=(3, 0)):
    """Two images of 64 × 64, the second narrower than the batch, with so many objects each, whose masks are disks."""
    torch.manual_seed(1)
    images = Images.pad([torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), torch.zeros(3, 60, 40).byte()])
    corners = [torch.rand(num, 2) * 20 for num in num_objects]
    boxes = [torch.cat([corner, corner + 10 + torch.rand_like(corner) * 10], dim=1) for corner in corners]
    labels = [torch.randint(1, 7, (num,)) for num in num_objects]
    sizes = images.sizes.tolist()
    masks = [disks(of_image, *size) for of_image, size in zip(boxes, sizes, strict=True)]
    return images, Targets.pad(boxes, labels, masks, (64, 64))


def disks(boxes, height, width):
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    x1, y1, x2, y2 = boxes.T[:, :, None, None]
    return (((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1).byte()


def detect_everything(model):
    """No score is too low for a detection, so that an untrained model has some."""
    if hasattr(model, "head"):
        selection = replace(model.head.rules.selection, score_threshold=0.0)
        model.head.rules = replace(model.head.rules, selection=selection)
    else:
        model.box_rules = replace(model.box_rules, score_threshold=0.0)
    return model.eval()


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


@pytest.mark.parametrize("experiment", [BASELINE, *DETECTORS])
def test_every_parameter_that_is_trained_receives_a_gradient(small_model, experiment):
    model = small_model(experiment)
    sum(model.losses(*batch()).values()).backward()
    without = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert without == []


@pytest.mark.parametrize("experiment", [BASELINE, *DETECTORS, *ABLATIONS])
def test_the_losses_trace_as_one_graph_and_are_the_same(small_model, experiment):
    model = small_model(experiment)
    images, targets = batch()

    compiled = torch.compile(model.losses, fullgraph=True, backend="eager")
    torch.manual_seed(0)
    traced = compiled(images, targets)
    torch.manual_seed(0)
    torch.testing.assert_close(traced, model.losses(images, targets))


@pytest.mark.parametrize("experiment", [BASELINE, *DETECTORS])
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
            step(Losses(model), [whole], 0.5)
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("experiment", [BASELINE, *DETECTORS])
def test_inference_traces_as_one_graph_and_is_the_same(small_model, experiment):
    model = detect_everything(small_model(experiment))
    images, _ = batch()
    compiled = torch.compile(model.detect, fullgraph=True, backend="eager")(images)
    detections = model.detect(images)
    assert detections.valid.any()
    torch.testing.assert_close(vars(compiled), vars(detections))


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


@pytest.mark.parametrize("experiment", [BASELINE, *DETECTORS])
@pytest.mark.parametrize("size", [64, 512])
def test_everything_stays_on_the_device_of_the_model(small_model, experiment, size):
    """On tensors that are said to be on a GPU and hold nothing: a tensor left on the host would be an error."""
    with FakeTensorMode():
        with torch.device("cuda"):
            model = small_model(experiment)
        images = Images(torch.zeros(2, 3, size, size, device="cuda"), torch.full((2, 2), size, device="cuda"))
        targets = Targets(
            torch.zeros(2, 8, 4, device="cuda"),
            torch.ones(2, 8, dtype=torch.int64, device="cuda"),
            torch.zeros(2, 8, size, size, dtype=torch.uint8, device="cuda"),
        )
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


@pytest.mark.parametrize("experiment", DETECTORS)
@pytest.mark.parametrize("shape", [(33, 500), (2, 300), (700, 4), (1, 1)])
def test_images_of_any_shape_are_detected_in(small_model, experiment, shape):
    [found] = detect_everything(small_model(experiment))([torch.rand(3, *shape)])
    assert found["boxes"].shape[1] == 4
    if "masks" in found:
        assert found["masks"].shape == (len(found["boxes"]), 1, *shape)


@pytest.mark.parametrize("experiment", DETECTORS)
def test_images_of_the_papers_sizes_are_trained_and_detected_in(small_model, experiment):
    model = small_model(experiment)
    model.preprocessing.short_side, model.preprocessing.long_side = 800, 1333
    with torch.no_grad():
        for shape in [(33, 500), (1333, 800)]:
            box = torch.tensor([[2.0, 3.0, shape[1] - 4.0, shape[0] - 5.0]])
            target = {"boxes": box, "labels": torch.tensor([1]), "masks": torch.ones(1, *shape)}
            losses = model.train()([torch.rand(3, *shape)], [target])
            assert all(loss.isfinite() for loss in losses.values())
            [found] = model.eval()([torch.rand(3, *shape)])
            assert (found["boxes"] >= 0).all()


@pytest.mark.parametrize("experiment", DETECTORS)
def test_the_public_surface_is_torchvisions(small_model, experiment):
    """What torchvision's references do in an epoch of training and in an evaluation, with its data sets' targets."""
    model = small_model(experiment)
    images = [torch.rand(3, 50, 80), torch.rand(3, 33, 120)]
    some, none = torch.tensor([[5.0, 5.0, 40.0, 40.0]]), torch.zeros(0, 4)
    targets = [
        {
            "boxes": boxes,
            "labels": torch.full((len(boxes),), 2),
            "masks": disks(boxes, *image.shape[1:]),
            "image_id": position,
            "area": (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
            "iscrowd": torch.zeros(len(boxes), dtype=torch.int64),
        }
        for position, (image, boxes) in enumerate(zip(images, (some, none), strict=True))
    ]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
    model.train()
    for _ in range(2):
        images = [image.to("cpu") for image in images]
        targets = [{k: v.to("cpu") if isinstance(v, torch.Tensor) else v for k, v in t.items()} for t in targets]
        loss_dict = model(images, targets)
        losses = sum(loss for loss in loss_dict.values())
        assert math.isfinite(losses.item())
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()

    detect_everything(model)
    with torch.inference_mode():
        outputs = model(images)
    outputs = [{k: v.to("cpu") for k, v in t.items()} for t in outputs]
    assert len(outputs) == 2
    for image, detections in zip(images, outputs, strict=True):
        num = len(detections["labels"])
        assert num > 0
        assert detections["boxes"].shape == (num, 4)
        assert (detections["scores"].diff() <= 0).all()
        assert detections["boxes"].amax() > 0
        assert (detections["boxes"][:, 2] <= image.shape[2] + 1e-3).all()
        assert (detections["boxes"][:, 3] <= image.shape[1] + 1e-3).all()
        assert ((detections["labels"] >= 1) & (detections["labels"] <= 6)).all()
        assert ("masks" in detections) == ("mask_rcnn" in experiment)
        if "masks" in detections:
            assert detections["masks"].shape == (num, 1, *image.shape[1:])
            assert 0 <= detections["masks"].amin() <= detections["masks"].amax() <= 1


def test_training_without_targets_is_refused_with_what_to_do(small_model):
    with pytest.raises(ValueError, match=r"\.eval\(\)"):
        small_model("table2/baseline")([torch.rand(3, 64, 64)])


def sorted_by_place(detections):
    """Detections of nearly the same score may change places; by label and place their order is certain."""
    order = sorted(range(len(detections["labels"])), key=lambda i: (detections["labels"][i], *detections["boxes"][i]))
    return {name: values[order] for name, values in detections.items()}


@pytest.mark.parametrize("experiment", DETECTORS)
def test_a_padded_batch_gives_the_same_as_its_images_one_by_one_at_the_same_padding(small_model, experiment):
    model = detect_everything(small_model(experiment))
    torch.manual_seed(2)
    together = Images.pad([torch.rand(3, 64, 96), torch.rand(3, 40, 96), torch.rand(3, 64, 50)])
    found = model.detect(together).per_image(together.sizes, together.sizes)
    for position, of_image in enumerate(found):
        own = slice(position, position + 1)
        alone = Images(together.pixels[own], together.sizes[own])
        [expected] = model.detect(alone).per_image(alone.sizes, alone.sizes)
        torch.testing.assert_close(sorted_by_place(of_image), sorted_by_place(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("experiment", DETECTORS)
def test_a_permuted_batch_permutes_the_detections(small_model, experiment):
    model = detect_everything(small_model(experiment))
    torch.manual_seed(2)
    images = [torch.rand(3, 64, 64) for _ in range(3)]
    found, permuted = model(images), model([images[i] for i in (2, 0, 1)])
    for position, original in enumerate((2, 0, 1)):
        torch.testing.assert_close(
            sorted_by_place(permuted[position]), sorted_by_place(found[original]), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("experiment", DETECTORS)
@pytest.mark.parametrize("num_objects", [(0, 0), (1, 0), (300, 2)])
def test_any_number_of_objects_is_trained(small_model, experiment, num_objects):
    model = small_model(experiment)
    losses = model.losses(*batch(num_objects))
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_pretrained_weights_that_cannot_be_had_are_named_with_what_to_do(monkeypatch, tmp_path):
    import huggingface_hub

    def no_network(*_):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", no_network)
    monkeypatch.setenv("AUGFPN_WEIGHTS", str(tmp_path))
    with pytest.raises(ValueError, match=r"'resnet50.tv_in1k' could not be fetched.*put it at"):
        build_detector("table2/baseline", num_classes=80)


def test_a_detector_can_be_built_by_the_papers_name(tmp_path):
    from_nothing = build_detector("table2/cs+rfa+srs", num_classes=80, pretrained=False)
    assert all(parameter.requires_grad for parameter in from_nothing.parameters())
    fusion = sum(parameter.numel() for parameter in from_nothing.roi_pooling.parameters())
    assert fusion == 271_620
    weights = {name.removeprefix("body."): value for name, value in from_nothing.backbone.state_dict().items()}
    torch.save(weights, tmp_path / "resnet50.pth")

    model = build_detector("table2/cs+rfa+srs", num_classes=80, weights=str(tmp_path / "resnet50.pth"))
    frozen = {name for name, parameter in model.backbone.named_parameters() if not parameter.requires_grad}
    assert {"body.conv1.weight", "body.layer1.0.conv1.weight"} <= frozen
    assert "body.layer2.0.conv1.weight" not in frozen
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("experiment", DETECTORS)
def test_halves_train_and_their_detections_are_whole_floats(small_model, experiment):
    model = small_model(experiment)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.losses(*batch())
        sum(losses.values()).backward()
        assert all(loss.isfinite() for loss in losses.values())
        found = detect_everything(model)([torch.rand(3, 64, 64)])[0]
    assert len(found["scores"]) > 0
    assert found["scores"].dtype == found["boxes"].dtype == torch.float32
    assert found["scores"].numpy().max() <= 1


def test_panets_pooling_can_take_the_place_of_the_single_level(small_model):
    config = replace(plan("table2/baseline", "smoke").model, adaptive_feature_pooling=True)
    model = build_from_config(config, 6, short_side=64, long_side=128)
    sum(model.losses(*batch()).values()).backward()
    assert all(layer.weight.grad.abs().sum() > 0 for layer in model.box_head.fc1.layers)
    assert detect_everything(model).detect(batch()[0]).valid.any()
    with pytest.raises(ValueError, match="not from both"):
        replace(find_experiment("table2/srs").model, adaptive_feature_pooling=True)


@pytest.mark.parametrize("experiment", DETECTORS[:2])
def test_augfpn_trains_under_torchvisions_conventions(small_model, experiment):
    config = replace(plan(experiment, "smoke").model, conventions=TORCHVISION)
    model = build_from_config(config, 6, short_side=64, long_side=128)
    losses = model.losses(*batch())
    assert "loss_aux_box_reg" in losses
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize(("experiment", "depends_on_it"), [("table2/baseline", False), ("table2/rfa", True)])
def test_what_is_far_from_the_padding_depends_on_it_with_residual_feature_augmentation_only(
    small_model, experiment, depends_on_it
):
    model = small_model(experiment).eval()
    torch.manual_seed(0)
    image = torch.rand(3, 64, 1024)
    sizes = torch.tensor([[64, 1024]])
    with torch.no_grad():
        narrow = model.features(Images(image[None], sizes))
        wide = model.features(Images(torch.nn.functional.pad(image, (0, 512))[None], sizes))
    for level, wider, stride in zip(narrow.levels[:4], wide.levels[:4], narrow.strides, strict=False):
        far = (..., slice(None), slice(0, 256 // stride))
        change = (level[far] - wider[far]).norm() / level[far].norm()
        assert change > 1e-4 if depends_on_it else change < 1e-5
