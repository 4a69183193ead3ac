"""Probabilities at the end of a network, against evaluation's in float64; and models that come back as they were."""

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import nn

from deployment.exported_network import ExportedNetwork, ready_for_export
from evaluation.calibration import Calibration, uncalibrated
from tests.deployment.toys import IMAGE_SHAPE, Toy

X = torch.randn(6, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(1))
SLOPES, INTERCEPTS = (0.5, 1.0, 2.0, 3.0), (0.1, 0.0, -1.0, 0.3)


def outputs(network: nn.Module):
    with torch.no_grad():
        return network(X)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("line", [None, (SLOPES, INTERCEPTS)])
def test_probabilities_are_those_of_evaluation(exclusive, line):
    model = Toy().eval()
    found = outputs(ExportedNetwork(model, exclusive, False, *(line or ())))
    logits = outputs(model).double().numpy()
    expected = uncalibrated(logits, exclusive)
    if line:
        expected = Calibration("platt", exclusive, *line, ("",) * 4).probabilities(logits)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_logits_are_given_as_they_are():
    model = Toy().eval()
    assert torch.equal(
        outputs(ExportedNetwork(model, logits=True, slopes=SLOPES, intercepts=INTERCEPTS)), outputs(model)
    )


def test_fine_classes_come_first_and_coarse_ones_are_not_calibrated():
    model = Toy(hierarchical=True).eval()
    coarse, fine = (y.double().numpy() for y in outputs(model))
    first, second = outputs(ExportedNetwork(model, slopes=SLOPES, intercepts=INTERCEPTS))
    np.testing.assert_allclose(first, expit(fine * SLOPES + INTERCEPTS), atol=1e-6)
    np.testing.assert_allclose(second, expit(coarse), atol=1e-6)
    raw = outputs(ExportedNetwork(model, logits=True))
    np.testing.assert_array_equal(raw[0], fine.astype(np.float32))
    np.testing.assert_array_equal(raw[1], coarse.astype(np.float32))


@pytest.mark.parametrize("precision, largest", [("fp16", 2e-3), ("bf16", 1e-2)])
def test_half_types_are_inside_only_and_of_a_copy(precision, largest):
    network = ExportedNetwork(Toy(), slopes=SLOPES, intercepts=INTERCEPTS)
    before = outputs(network)
    half = network.in_precision(precision)
    assert {p.dtype for p in half.network.parameters()} == {half.dtype} and half.slopes.dtype == torch.float32
    found = outputs(half)
    assert found.dtype == torch.float32 and 0 < (found - before).abs().max() < largest
    assert torch.equal(outputs(network), before) and network.in_precision("fp32") is network


class Attention(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused_attn, self.dropout = fused, nn.Dropout()


def test_models_come_back_as_they_were():
    model = nn.ModuleList([Attention(True), Attention(False), Toy()]).train()
    model[2].dropout.eval()
    with pytest.raises(RuntimeError), ready_for_export(model):
        assert not any(module.training for module in model.modules())
        assert not model[0].fused_attn
        raise RuntimeError
    assert (model[0].fused_attn, model[1].fused_attn) == (True, False)
    assert model.training and model[0].dropout.training and not model[2].dropout.training
