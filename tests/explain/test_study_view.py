"""Heatmaps of one view of a study, against gradients of the whole network with all views at once."""

import pytest
import torch
from torch import Tensor

from configs.errors import ExplanationError
from explain.attributions import raw_attributions
from explain.methods import METHODS, explain
from explain.network import Layer, PyramidModel, explaining
from explain.study_view import ViewOfStudy, study_maps
from models.studies import AGGREGATORS
from tests.models.studies.test_network import VOLUMES, joining, trained
from tests.models.studies.test_one_study import one
from utils.batch import Inputs


def model_of(aggregator: str = "attention", fusion: str = "bilinear", *more: str):
    return trained(joining(aggregator, fusion, *more)).eval()


def of_all_views(model, inputs: Inputs, level: int, k: int) -> tuple[Tensor, Tensor]:
    """(activations, d logit_k / d them), [M, C, *cells], of all views in one pass of the network."""
    features = [f.detach() for f in model.forward_features(inputs.image, inputs)]
    features[level] = features[level].requires_grad_()
    logits = model.forward_head(features, inputs)
    return features[level].detach(), torch.autograd.grad(logits[0, k], features[level])[0]


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_gradient_of_a_view_is_that_of_the_whole_network(aggregator):
    model, inputs = model_of(aggregator, "cross_attention"), one()
    activations, gradients = of_all_views(model, inputs, 2, 1)
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients)
    for view in range(2):
        alone = ViewOfStudy(model, inputs, view)
        assert isinstance(alone, PyramidModel)
        torch.testing.assert_close(alone(alone.image), model(inputs), atol=1e-5, rtol=1e-5)
        with explaining(alone):
            layer = Layer(alone, alone.image, 2)
            (gradient,) = layer.gradients([1])
        torch.testing.assert_close(layer.activations[0], activations[view], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradient[0], gradients[view], atol=1e-6, rtol=1e-4)


def test_gradient_of_pixels_is_that_of_the_whole_network():
    """Integrated gradients add up to what the output loses where this view alone is replaced."""
    model, inputs = model_of(), one()
    for view in range(2):
        alone = ViewOfStudy(model, inputs, view)
        total = float(raw_attributions(alone, alone.image, [2], "integrated_gradients").sum())
        image = inputs.image.clone()
        image[view] = 0
        with torch.no_grad():
            lost = float((model(inputs) - model(inputs._replace(image=image)))[0, 2])
        assert total == pytest.approx(lost, rel=0.05, abs=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_map_a_view_or_says_why_not(method, monkeypatch):
    monkeypatch.setattr("explain.attributions.INTEGRATION_STEPS", 4)
    model, inputs = model_of(), one()
    if method == "attention_rollout":
        with pytest.raises(ExplanationError, match="needs a backbone whose blocks attend"):
            study_maps(model, inputs, [0], method)
        return
    maps = study_maps(model, inputs, [0, 2], method)
    assert [*maps] == [0, 1]
    for view, found in maps.items():
        assert found.shape == (2, 32, 32) and found.isfinite().all()
        assert float(found.min()) >= 0 and float(found.max()) in (0.0, pytest.approx(1.0))
        alone = ViewOfStudy(model, inputs, view)
        assert torch.equal(found, explain(alone, alone.image, [0, 2], method)[0])
    assert not torch.equal(maps[0], maps[1])


def test_the_table_and_the_other_view_matter_and_gaps_do_not():
    model, inputs = model_of("cross_attention", "cross_attention"), one()
    maps = study_maps(model, inputs, [0])
    other_table = study_maps(model, inputs._replace(table=torch.tensor([[-3.0, 1.0]])), [0])
    other_view = study_maps(model, inputs._replace(image=torch.stack([inputs.image[0], -inputs.image[1]])), [0])
    for changed in (other_table, other_view):
        assert float((changed[0] - maps[0]).abs().max()) > 1e-3
    known = torch.tensor([[True, False]])
    gap = inputs._replace(table=torch.tensor([[0.5, 0.0]]), table_mask=known)
    behind = gap._replace(table=torch.tensor([[0.5, torch.nan]]))
    assert torch.equal(study_maps(model, gap, [0])[0], study_maps(model, behind, [0])[0])


def test_views_that_are_not_there_have_no_map():
    model, inputs = model_of(), one((False, True))
    assert [*study_maps(model, inputs, [0])] == [1]
    assert study_maps(model, one((False, False)), [0]) == {}
    with pytest.raises(ExplanationError, match="not one of the views"):
        ViewOfStudy(model, inputs, 0)


def test_separate_backbones_in_inference_mode_and_volumes():
    model, inputs = model_of("attention", "gated", "MODEL.views.backbones=separate"), one(kinds=(1, 0))
    for parameter in model.view_backbones.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    _, gradients = of_all_views(model, inputs, 1, 0)
    for view in range(2):
        alone = ViewOfStudy(model, inputs, view)
        with explaining(alone):
            (gradient,) = Layer(alone, alone.image, 1).gradients([0])
        torch.testing.assert_close(gradient[0], gradients[view], atol=1e-6, rtol=1e-4)
    with torch.inference_mode():
        made = Inputs(*(tensor.clone() for tensor in inputs))
        assert torch.equal(study_maps(model, made, [0])[0], study_maps(model, inputs, [0])[0])
    volumes = model_of("mean", "gated", *VOLUMES)
    images = torch.randn(2, 1, 32, 32, 32)
    assert study_maps(volumes, inputs._replace(image=images), [0])[1].shape == (1, 32, 32, 32)
