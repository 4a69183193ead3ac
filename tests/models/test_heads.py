"""Heads against one network per class, built and run one by one, in float64."""

import pytest
import torch
from torch import nn

from models.heads import ClasswiseMLP, HierarchicalHead, MultiLabelHead, PooledFeatures


def separate_networks(classwise: ClasswiseMLP, dropout: float = 0.0) -> list[nn.Sequential]:
    """One nn.Sequential a class with the same weights."""
    classes, hidden = classwise.weight.shape
    channels = classwise.hidden.in_features
    networks = []
    for k in range(classes):
        rows = slice(k * hidden, (k + 1) * hidden)
        first, last = nn.Linear(channels, hidden).double(), nn.Linear(hidden, 1).double()
        first.weight.data, first.bias.data = classwise.hidden.weight.data[rows], classwise.hidden.bias.data[rows]
        last.weight.data, last.bias.data = classwise.weight.data[k : k + 1], classwise.bias.data[k : k + 1]
        networks.append(nn.Sequential(first, nn.ReLU(), nn.Dropout(dropout), last))
    return networks


@pytest.mark.parametrize("channels, classes", [(32, 14), (6, 3), (2, 1)], ids=str)
def test_classwise_mlp_is_a_network_a_class(channels, classes):
    torch.manual_seed(0)
    classwise = ClasswiseMLP(channels, classes, 0.5).double().eval()
    assert classwise.weight.shape == (classes, max(channels // 4, 1))
    networks, x = separate_networks(classwise), torch.randn(5, channels, dtype=torch.float64)
    expected = torch.cat([network(x) for network in networks], dim=1)
    torch.testing.assert_close(classwise(x), expected, rtol=1e-12, atol=1e-12)

    probe = torch.randn_like(expected)
    (classwise(x) * probe).sum().backward()
    (expected * probe).sum().backward()
    hidden = torch.cat([network[0].weight.grad for network in networks])
    torch.testing.assert_close(classwise.hidden.weight.grad, hidden, rtol=1e-12, atol=1e-12)
    last = torch.cat([network[3].weight.grad for network in networks])
    torch.testing.assert_close(classwise.weight.grad, last, rtol=1e-12, atol=1e-12)


def test_classes_share_nothing_after_the_pooled_vector():
    torch.manual_seed(0)
    classwise = ClasswiseMLP(8, 4, 0.0)
    (gradient,) = torch.autograd.grad(classwise(torch.randn(3, 8))[:, 1].sum(), classwise.hidden.weight)
    touched = gradient.abs().sum(1).reshape(4, 2).sum(1) > 0
    assert touched.tolist() == [False, True, False, False]


def test_dropout_acts_on_hidden_units_in_training_only():
    torch.manual_seed(0)
    classwise, x = ClasswiseMLP(64, 50, 0.25), torch.randn(1, 64)
    assert torch.equal(classwise.eval()(x), classwise(x))
    classwise.train()
    draws = classwise(x.expand(2000, -1))[:, None]
    torch.testing.assert_close(draws.mean(0), classwise.eval()(x), rtol=0, atol=0.05)
    # Var of Σ w_j h_j m_j / (1 − p), m_j kept with probability 1 − p, is p / (1 − p) Σ (w_j h_j)².
    hidden = classwise.hidden(x).relu().unflatten(1, classwise.weight.shape)
    expected = 0.25 / 0.75 * (hidden * classwise.weight).square().sum(-1)
    assert (draws.var(0).sum() / expected.sum()).item() == pytest.approx(1, abs=0.1)


def test_initial_weights_are_those_of_separate_linear_layers():
    """The same range as nn.Linear(hidden, 1) has: uniform within 1 / √hidden."""
    torch.manual_seed(0)
    classwise = ClasswiseMLP(256, 400, 0.0)
    reference = nn.Linear(64, 400)
    for mine, theirs in ((classwise.weight, reference.weight), (classwise.bias, reference.bias)):
        assert mine.abs().max() <= 1 / 8
        assert mine.std().item() == pytest.approx(theirs.std().item(), rel=0.1)


def used_batch_norms(module: nn.Module) -> None:
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d):
            for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
                tensor.normal_()
            norm.running_var.uniform_(0.5, 2)


def direct_features(pooled: PooledFeatures, x: torch.Tensor) -> torch.Tensor:
    linear, norm = pooled[0], pooled[1]
    vector = torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)
    y = vector @ linear.weight.T + linear.bias
    return ((y - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias).clamp_min(0)


def test_multi_label_head():
    torch.manual_seed(0)
    head, x = MultiLabelHead(12, 5).double().eval(), torch.randn(3, 12, 4, 5, dtype=torch.float64)
    used_batch_norms(head)
    features = direct_features(head.feature_fusion, x)
    expected = torch.cat([network(features) for network in separate_networks(head.classifiers)], dim=1)
    torch.testing.assert_close(head(x), expected, rtol=1e-12, atol=1e-12)


def test_dropout_of_the_classes_is_half_of_the_shared_one():
    """As in the previous release."""
    head = MultiLabelHead(8, 3, dropout=0.5)
    assert head.feature_fusion[3].p == 0.5 and head.classifiers.dropout.p == 0.25


def test_hierarchical_head():
    torch.manual_seed(0)
    head, x = HierarchicalHead(12, 3, 5).double().eval(), torch.randn(4, 12, 3, 3, dtype=torch.float64)
    used_batch_norms(head)

    def mlp(network: nn.Sequential, y: torch.Tensor) -> torch.Tensor:
        first, norm, _, _, last = network
        y = y @ first.weight.T + first.bias
        y = (y - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        return y.clamp_min(0) @ last.weight.T + last.bias

    features = direct_features(head.feature_fusion, x)
    coarse = mlp(head.coarse_classifier, features)
    fine = mlp(head.fine_classifier, torch.cat([features, coarse], dim=1))
    result = head(x)
    torch.testing.assert_close(result[0], coarse, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result[1], fine, rtol=1e-12, atol=1e-12)


def test_fine_logits_depend_on_coarse_ones():
    """The loss of the findings reaches the coarse classifier, and moving a coarse logit moves the findings."""
    torch.manual_seed(0)
    head, x = HierarchicalHead(12, 3, 5).eval(), torch.randn(4, 12, 3, 3)
    before = head(x)
    gradients = torch.autograd.grad(before[1].sum(), list(head.coarse_classifier.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    head.coarse_classifier[-1].bias.data[1] += 3
    after = head(x)
    torch.testing.assert_close((after[0] - before[0])[:, 1], torch.full((4,), 3.0))
    assert (after[1] - before[1]).abs().amax(1).min() > 1e-4


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("spatial", [(2, 2), (1, 1), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("kind, classes", [(MultiLabelHead, (3,)), (HierarchicalHead, (2, 3))], ids=["flat", "hier"])
def test_one_image_or_volume_trains(kind, classes, spatial, norm):
    torch.manual_seed(0)
    head = kind(64, *classes, norm=norm).train()
    output = head(torch.randn(1, 64, *spatial))
    outputs = output if isinstance(output, tuple) else (output,)
    assert [logits.shape for logits in outputs] == [(1, n) for n in classes]
    sum(logits.square().sum() for logits in outputs).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def test_group_norm_does_not_mix_the_images_of_a_batch():
    torch.manual_seed(0)
    head, x = MultiLabelHead(64, 3, dropout=0.0, norm="group").train(), torch.randn(4, 64, 3, 3)
    torch.testing.assert_close(head(x)[1:2], head(x[1:2]), rtol=1e-5, atol=1e-6)
    mixed = MultiLabelHead(64, 3, dropout=0.0).train()
    assert (mixed(x)[1:2] - mixed(x[1:2])).abs().max() > 1e-2
    assert not any(isinstance(module, nn.BatchNorm1d) for module in head.modules())


def test_heads_do_not_look_at_the_number_of_axes():
    torch.manual_seed(0)
    head, x = MultiLabelHead(12, 5).eval(), torch.randn(3, 12, 4, 6)
    torch.testing.assert_close(head(x), head(x.reshape(3, 12, 2, 2, 6)))
