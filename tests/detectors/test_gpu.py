"""What can only be seen on a GPU: `pytest -m gpu`."""

import pytest
import torch

from augfpn.data.loading import Batch
from augfpn.engine.step import Losses, backpropagate
from tests.detectors.test_detectors import BASELINE, DETECTORS, batch, detect_everything

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]


@pytest.mark.parametrize("experiment", [BASELINE, *DETECTORS])
def test_features_and_detections_equal_the_cpus(small_model, experiment):
    images, _ = batch()
    model = detect_everything(small_model(experiment))
    expected = model.detect(images)
    actual = model.cuda().detect(images.to("cuda")).to("cpu")
    torch.testing.assert_close(actual.scores, expected.scores, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(actual.boxes, expected.boxes, atol=0.1, rtol=1e-3)


@pytest.mark.parametrize("experiment", [BASELINE, *DETECTORS])
def test_a_training_step_leaves_finite_gradients(small_model, experiment):
    images, targets = batch()
    model = small_model(experiment).cuda()
    values = backpropagate(Losses(model), [Batch(images, targets, (1, 2), images.sizes).to(torch.device("cuda"))], 35.0)
    assert all(value.isfinite() for value in values.values())
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("experiment", [BASELINE, *DETECTORS])
def test_mixed_precision_has_nearly_the_same_gradients(small_model, experiment):
    images, targets = batch()
    on_gpu = Batch(images, targets, (1, 2), images.sizes).to(torch.device("cuda"))
    gradients = []
    for precision in ("fp32", "bf16"):
        model = small_model(experiment).cuda()
        torch.manual_seed(0)
        backpropagate(Losses(model), [on_gpu], None, precision)
        gradients.append(torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.9
