import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from augfpn.components import AdaptiveSpatialFusion
from augfpn.components.adaptive_fusion import (
    AdaptiveChannelFusion,
    ConvolutionalFusion,
    FusionName,
    MaxFusion,
    SumFusion,
    fusion_of,
)


def with_biases(fusion):
    """Biases start at zero, where they could be forgotten."""
    for name, parameter in fusion.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return fusion


def slow_fusion(fusion, features):
    """Figure 3(a), an input and a position at a time."""
    num_images, num_inputs, _, height, width = features.shape
    fused = torch.zeros_like(features[:, 0])
    weights = torch.zeros(num_images, num_inputs, height, width)
    for image in range(num_images):
        concatenated = torch.cat(list(features[image]))
        hidden = F.conv2d(concatenated[None], fusion.reduce.weight, fusion.reduce.bias).clamp(min=0)
        padded = F.pad(hidden, (1, 1, 1, 1))[0]
        for i in range(num_inputs):
            for y in range(height):
                for x in range(width):
                    score = (fusion.weigh.weight[i] * padded[:, y : y + 3, x : x + 3]).sum() + fusion.weigh.bias[i]
                    weights[image, i, y, x] = 1 / (1 + torch.exp(-score))
                    fused[image, :, y, x] += weights[image, i, y, x] * features[image, i, :, y, x]
    return fused, weights


def test_fusion_equals_a_slow_loop_over_inputs_and_positions():
    torch.manual_seed(0)
    fusion = with_biases(AdaptiveSpatialFusion(channels=6, num_inputs=3))
    features = torch.randn(2, 3, 6, 4, 5)
    with torch.no_grad():
        fused, weights = fusion(features)
        slow_fused, slow_weights = slow_fusion(fusion, features)
    torch.testing.assert_close(weights, slow_weights)
    torch.testing.assert_close(fused, slow_fused)


def test_the_papers_fusion_of_four_levels_has_its_parameter_count():
    fusion = AdaptiveSpatialFusion(channels=256, num_inputs=4)
    assert sum(parameter.numel() for parameter in fusion.parameters()) == 271_620  # "0.27M", Section 4.4


def test_weights_of_different_inputs_are_independent():
    fusion = AdaptiveSpatialFusion(channels=2, num_inputs=2)
    with torch.no_grad():
        fusion.weigh.weight.zero_()
        fusion.weigh.bias.copy_(torch.tensor([20.0, 20.0]))
        fused, weights = fusion(torch.ones(1, 2, 2, 3, 3))
    # A softmax would give halves; sigmoids give one each.
    torch.testing.assert_close(weights, torch.ones_like(weights))
    torch.testing.assert_close(fused, torch.full_like(fused, 2.0))


def slow_channel_fusion(fusion, features):
    """Figure 3(b), a number at a time: squeeze, two layers, a weight for each channel of each input."""
    num_images, num_inputs, channels, height, width = features.shape
    fused = torch.zeros_like(features[:, 0])
    weights = torch.zeros(num_images, num_inputs, height, width)
    for image in range(num_images):
        squeezed = [
            features[image, i, c].sum().item() / (height * width) for i in range(num_inputs) for c in range(channels)
        ]
        hidden = [
            max(0.0, sum(w * x for w, x in zip(row, squeezed, strict=True)) + bias)
            for row, bias in zip(fusion.reduce.weight.tolist(), fusion.reduce.bias.tolist(), strict=True)
        ]
        for i in range(num_inputs):
            for c in range(channels):
                output = i * channels + c
                row, bias = fusion.weigh.weight[output].tolist(), fusion.weigh.bias[output].item()
                score = sum(w * x for w, x in zip(row, hidden, strict=True)) + bias
                weight = 1 / (1 + math.exp(-score))
                fused[image, c] += weight * features[image, i, c]
                weights[image, i] += weight / channels
    return fused, weights


def test_channel_fusion_equals_a_slow_loop_over_inputs_and_channels():
    torch.manual_seed(0)
    fusion = with_biases(AdaptiveChannelFusion(channels=6, num_inputs=3))
    features = torch.randn(2, 3, 6, 4, 5)
    with torch.no_grad():
        fused, weights = fusion(features)
        slow_fused, slow_weights = slow_channel_fusion(fusion, features)
    torch.testing.assert_close(weights, slow_weights)
    torch.testing.assert_close(fused, slow_fused)


def test_the_parameters_of_channel_fusion_of_four_levels_worked_by_hand():
    fusion = AdaptiveChannelFusion(channels=256, num_inputs=4)
    # A layer from 4 × 256 means to 256, a layer back.
    by_hand = (1024 + 1) * 256 + (256 + 1) * 1024
    assert sum(parameter.numel() for parameter in fusion.parameters()) == by_hand == 525_568


def test_channel_fusion_weighs_all_places_alike_where_spatial_fusion_does_not():
    torch.manual_seed(0)
    features = torch.randn(1, 2, 3, 4, 4)
    of_channels = AdaptiveChannelFusion(channels=3, num_inputs=2)(features).weights
    of_places = AdaptiveSpatialFusion(channels=3, num_inputs=2)(features).weights
    assert (of_channels == of_channels[..., :1, :1]).all()
    assert of_places.flatten(2).std(dim=2).min() > 1e-3


def test_the_sum_worked_by_hand():
    features = torch.tensor([[1.0, -2.0], [3.0, 5.0], [-1.0, 0.5]])[None, :, None, None]
    fused, weights = SumFusion()(features)
    assert fused.tolist() == [[[[3.0, 3.5]]]]
    assert torch.equal(weights, torch.ones(1, 3, 1, 2))


def test_the_maximum_and_its_weights_worked_by_hand():
    # Two inputs of four channels at two places, a column each.
    first = [[1.0, -1.0], [2.0, -1.0], [3.0, -1.0], [0.0, -1.0]]
    second = [[0.0, -2.0], [5.0, -3.0], [1.0, -4.0], [-1.0, -5.0]]
    fused, weights = MaxFusion()(torch.tensor([first, second])[None, :, :, None])
    assert fused[0, :, 0].tolist() == [[1, -1], [5, -1], [3, -1], [0, -1]]
    # At the first place the second input is the larger in one channel of four, at the second place in none.
    assert weights[0, :, 0].tolist() == [[0.75, 1.0], [0.25, 0.0]]


def test_the_weights_of_the_maximum_sum_to_one_also_where_inputs_are_equal():
    torch.manual_seed(0)
    # Whole numbers, so that many are equal; one input alone, too.
    for num_inputs in (1, 4):
        weights = MaxFusion()(torch.randint(0, 3, (2, num_inputs, 8, 5, 6)).float()).weights
        assert weights.shape == (2, num_inputs, 5, 6)
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(2, 5, 6))


def test_convolutional_fusion_is_a_3_x_3_convolution_of_the_concatenation_and_has_no_weights():
    torch.manual_seed(0)
    fusion = with_biases(ConvolutionalFusion(channels=6, num_inputs=3))
    features = torch.randn(2, 3, 6, 4, 5)
    concatenated = torch.cat([features[:, 0], features[:, 1], features[:, 2]], dim=1)
    fused, weights = fusion(features)
    torch.testing.assert_close(fused, F.conv2d(concatenated, fusion.conv.weight, fusion.conv.bias, padding=1))
    assert weights is None


@pytest.mark.parametrize("name", get_args(FusionName))
def test_every_fusion_is_one_feature_of_the_size_of_its_inputs_with_gradients_everywhere(name):
    torch.manual_seed(0)
    fusion = fusion_of(name, channels=6, num_inputs=3)
    features = torch.randn(2, 3, 6, 4, 5, requires_grad=True)
    fused, weights = fusion(features)
    assert fused.shape == (2, 6, 4, 5)
    assert weights is None or (weights.shape == (2, 3, 4, 5) and 0 <= weights.min() <= weights.max() <= 1)
    fused.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in fusion.parameters())
    # The maximum has one for the input that is taken, the others for every input.
    reached = (features.grad != 0).float().mean().item()
    assert reached == pytest.approx(1 / 3 if name == "max" else 1)
