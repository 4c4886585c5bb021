import pytest
import torch
from timm.models.resnet import Bottleneck
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from augfpn.detectors.backbone import Backbone
from augfpn.detectors.preprocessing import Preprocessing
from augfpn.errors import UserError
from augfpn.experiments.config import BackboneConfig
from augfpn.structures import Images

# Of each, the names of all that comes before the end of C2.
C2_AND_BEFORE = {
    "resnet50": ("conv1.", "bn1.", "layer1."),
    "mobilenetv2_100": ("conv_stem.", "bn1.", "blocks.0.", "blocks.1."),
    "convnext_atto": ("stem_0.", "stem_1.", "stages_0."),
    "pvt_v2_b0": ("patch_embed.", "stages_0."),
}
CHANNELS = {
    "resnet50": (256, 512, 1024, 2048),
    "mobilenetv2_100": (24, 32, 96, 320),
    "convnext_atto": (40, 80, 160, 320),
    "pvt_v2_b0": (32, 64, 160, 256),
}


def frozen(backbone):
    return {name for name, parameter in backbone.body.named_parameters() if not parameter.requires_grad}


def assert_strides_4_to_32(backbone, image=(64, 96)):
    stages = backbone(torch.zeros(1, 3, *image, device=next(backbone.parameters()).device))
    expected = [
        (1, channels, image[0] // stride, image[1] // stride)
        for channels, stride in zip(backbone.channels, (4, 8, 16, 32), strict=True)
    ]
    assert [tuple(stage.shape) for stage in stages] == expected


@pytest.mark.parametrize("name", C2_AND_BEFORE)
def test_c2_to_c5_have_strides_4_to_32_and_the_architectures_channels(name):
    backbone = Backbone(name, None, 0, False)
    assert backbone.channels == CHANNELS[name]
    assert_strides_4_to_32(backbone)


@pytest.mark.parametrize("name", ["resnet101", "resnext101_32x4d", "resnext101_64x4d"])
def test_the_papers_other_backbones_are_built_as_resnet50_is(name):
    with torch.device("meta"):
        backbone = Backbone(name, None, 1, True)
    assert backbone.channels == CHANNELS["resnet50"]
    assert {parameter.split(".")[0] for parameter in frozen(backbone)} == {"conv1", "layer1"}
    assert_strides_4_to_32(backbone)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "mambaout_femto"])
def test_channels_come_first_also_from_channels_last_backbones_and_images_may_have_any_size(name):
    backbone = Backbone(name, None, 1, True).eval()
    assert_strides_4_to_32(backbone)
    assert_strides_4_to_32(backbone, (96, 64))


@pytest.mark.parametrize("frozen_batch_norm", [False, True])
@pytest.mark.parametrize("name", C2_AND_BEFORE)
def test_one_frozen_stage_is_all_before_the_end_of_c2_and_the_rest_is_trained(name, frozen_batch_norm):
    backbone = Backbone(name, None, 1, frozen_batch_norm)
    parameters = dict(backbone.body.named_parameters())
    assert frozen(backbone) == {parameter for parameter in parameters if parameter.startswith(C2_AND_BEFORE[name])}
    sum(stage.sum() for stage in backbone(torch.randn(2, 3, 64, 96))).backward()
    assert {parameter for parameter, value in parameters.items() if value.grad is None} == frozen(backbone)


def test_stages_are_frozen_also_on_a_gpu_that_is_only_said_to_be_there():
    with FakeTensorMode(), torch.device("cuda"):
        assert frozen(Backbone("resnet50", None, 1, True)) == frozen(Backbone("resnet50", None, 1, True, "caffe"))


@pytest.mark.parametrize("num", [0, 1, 2, 3, 4])
def test_more_stages_can_be_frozen_or_none(num):
    groups = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    found = {name.split(".")[0] for name in frozen(Backbone("resnet10t", None, num, False))}
    assert found == (set(groups[: num + 2]) if num > 0 else set())


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv2_100"])
def test_frozen_batch_norm_neither_learns_nor_measures(name):
    backbone = Backbone(name, None, 0, True).train()
    # MobileNet's batch norm has its activation in it.
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert not any("bn" in parameter for parameter, _ in backbone.named_parameters())
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone(torch.randn(2, 3, 64, 96))
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())


def test_building_leaves_no_trace_in_batch_norm_or_random_numbers():
    import timm

    torch.manual_seed(0)
    body = timm.create_model("resnet10t", features_only=True)
    after = torch.rand(1)
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", None, 1, False)
    assert torch.equal(torch.rand(1), after)
    assert backbone.training
    frozen = set(backbone._frozen_norms)
    assert all(module.training != (module in frozen) for module in backbone.modules())
    torch.testing.assert_close(backbone.body.state_dict(), body.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "frozen_stages", "expected"),
    [
        ("vit_tiny_patch16_224", 0, r"has the strides 16; C2…C5 need 4, 8, 16, 32"),
        ("maxvit_tiny_rw_224", 0, r"does not take images of any size \(64 × 96 pixels: .*window"),
        ("hrnet_w18_small", 1, r"not made one from the other.*frozen_stages=0"),
        ("resnet5", 0, r"no backbone 'resnet5'; did you mean 'resnet50'"),
    ],
)
def test_a_backbone_that_will_not_do_is_refused_with_the_reason(name, frozen_stages, expected):
    with pytest.raises(UserError, match=expected):
        Backbone(name, None, frozen_stages, True)


def test_five_frozen_stages_are_refused():
    with pytest.raises(UserError, match="0 to 4"):
        BackboneConfig(frozen_stages=5)


def test_the_style_caffe_has_the_stride_in_the_first_convolution_and_the_same_weights():
    with torch.device("meta"):
        pytorch, caffe = (Backbone("resnet50", None, 1, True, style) for style in ("pytorch", "caffe"))
    strides = {
        style: [
            (block.conv1.stride[0], block.conv2.stride[0])
            for block in backbone.modules()
            if isinstance(block, Bottleneck)
        ]
        for style, backbone in (("pytorch", pytorch), ("caffe", caffe))
    }
    # The first blocks of C3, C4 and C5 of ResNet-50's 3, 4, 6 and 3.
    halving = {3, 7, 13}
    assert strides["pytorch"] == [(1, 2) if block in halving else (1, 1) for block in range(16)]
    assert strides["caffe"] == [(2, 1) if block in halving else (1, 1) for block in range(16)]
    assert pytorch.state_dict().keys() == caffe.state_dict().keys()
    assert_strides_4_to_32(caffe)


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv2_100"])
def test_the_style_caffe_is_for_bottlenecks_only(name):
    with pytest.raises(UserError, match=rf"ResNets of bottlenecks.*{name}"):
        Backbone(name, None, 0, False, "caffe")


def test_caffes_pixels_are_bgr_in_0_to_255_less_their_mean_and_0_in_the_padding():
    images = [torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8), torch.randint(0, 256, (3, 3, 2), dtype=torch.uint8)]
    preprocessing = Preprocessing(800, 1333, style="caffe")
    batch = Images.pad(images)
    normalised = preprocessing.normalise(batch)
    mean = torch.tensor([102.9801, 115.9465, 122.7717])
    for image, found in zip(images, normalised, strict=True):
        _, height, width = image.shape
        red, green, blue = image.float()
        expected = torch.stack([blue - mean[0], green - mean[1], red - mean[2]])
        torch.testing.assert_close(found[:, :height, :width], expected, atol=1e-4, rtol=0)
        assert not found[:, height:].any()
        assert not found[:, :, width:].any()
    as_floats = preprocessing.normalise(Images(batch.pixels.float() / 255, batch.sizes))
    torch.testing.assert_close(as_floats, normalised)


def test_batch_norm_of_frozen_stages_keeps_its_statistics_where_that_of_others_does_not():
    backbone = Backbone("resnet18", None, frozen_stages=1, frozen_batch_norm=False).train()
    before = {name: value.clone() for name, value in backbone.named_buffers() if name.endswith("running_mean")}
    backbone(torch.rand(2, 3, 64, 64))
    moved = {name for name, value in backbone.named_buffers() if name in before and not value.equal(before[name])}
    assert {"body.bn1.running_mean", "body.layer1.0.bn1.running_mean"}.isdisjoint(moved)
    assert "body.layer2.0.bn1.running_mean" in moved
