import torch
import torch.nn.functional as F

from augfpn.components import AdaptiveSpatialFusion


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
    fusion = AdaptiveSpatialFusion(channels=6, num_inputs=3)
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
