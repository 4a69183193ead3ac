"""HybridMedNet of studies: today's network where nothing is joined, and bit-equal to it as it begins."""

import copy
import itertools

import pytest
import torch
from torch import Tensor

from configs.default_config import Config
from configs.errors import ConfigError, ModelError
from models import HybridMedNet
from models.studies import AGGREGATORS, FUSIONS
from utils.batch import Inputs, Logits
from utils.blocks import State

SMALL = ["MODEL.backbone=timm/test_resnet", "MODEL.pretrained=false", "DATA.image_size=32", "MODEL.fpn_channels=16"]
SMALL += ["MODEL.fusion_channels=16", "MODEL.num_classes=3", "MODEL.dropout=0.3"]
KINDS, COLUMNS = "MODEL.view_kinds=[frontal, lateral]", "MODEL.table_columns={age: numeric, sex: 2}"
MASK = torch.tensor([[1, 1], [0, 1], [0, 0], [1, 0]]).bool()
VOLUMES = ["MODEL.backbone=swin3d_tiny", "DATA.image_size=[32, 32, 32]", "MODEL.in_channels=1"]


def network(*overrides: str, seed: int = 0) -> HybridMedNet:
    torch.manual_seed(seed)
    return HybridMedNet(Config.from_overrides([*SMALL, *overrides]).without_pretrained())


def joining(aggregator: str, fusion: str, *overrides: str) -> HybridMedNet:
    parts = f"MODEL.views={{aggregator: {aggregator}, width: 8}}", f"MODEL.table={{fusion: {fusion}, width: 8}}"
    return network(*parts, KINDS, COLUMNS, *overrides)


def trained(model: HybridMedNet) -> HybridMedNet:
    """What joins studies is not zero any more."""
    torch.manual_seed(1)
    for parameter in model.classifier.study.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def studies(seed: int = 0, channels: int = 3, size: tuple[int, ...] = (32, 32)) -> Inputs:
    torch.manual_seed(seed)
    images, table = torch.randn(int(MASK.sum()), channels, *size), torch.tensor([[0.5, 1], [0, 2], [-1, 1], [0, 0]])
    known = torch.tensor([[1, 1], [0, 1], [1, 1], [0, 0]]).bool()
    return Inputs(images, MASK, torch.tensor([[0, 1], [0, 1], [0, 0], [1, 0]]), table * known, known)


def step(
    model: HybridMedNet, inputs: Inputs | Tensor
) -> tuple[list[Tensor], dict[str, Tensor | None], dict[str, Tensor]]:
    """Logits, gradients and buffers of a training step."""
    model.train()
    torch.manual_seed(5)
    logits = [y for y in Logits.of(model(inputs)) if y is not None]
    sum(y.square().sum() for y in logits).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return logits, gradients, {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize(("aggregator", "fusion"), [*itertools.product(AGGREGATORS, FUSIONS)])
def test_it_begins_as_the_network_of_images(aggregator, fusion):
    """With the same seed: all weights, and a training step of single images, with a table or none, to the last bit."""
    alone, study = network(), joining(aggregator, fusion)
    images = torch.randn(4, 3, 32, 32)
    added = study.state_dict().keys() - alone.state_dict().keys()
    assert added and all(name.startswith("classifier.study.") for name in added)
    assert all(torch.equal(study.state_dict()[name], tensor) for name, tensor in alone.state_dict().items())
    table = studies()[3:]
    with_table = Inputs.of_images(images)._replace(table=table[0], table_mask=table[1])
    given = (images, Inputs.of_images(images), with_table)
    logits, gradients, buffers = step(alone, images)
    for inputs in given:
        other_logits, other_gradients, other_buffers = step(copy.deepcopy(study), inputs)
        assert torch.equal(logits[0], other_logits[0])
        assert all(torch.equal(other_buffers[name], buffer) for name, buffer in buffers.items())
        assert all(torch.equal(other_gradients[name], gradient) for name, gradient in gradients.items())


def test_without_settings_nothing_is_added():
    assert network().classifier.study is None
    assert not any("study" in name for name in network().state_dict())
    with pytest.raises(ModelError, match="takes one image a study and no table"):
        network()(studies())


@pytest.mark.parametrize(
    "head", [(), ("MODEL.hierarchical=true", "MODEL.num_coarse_classes=2")], ids=["flat", "coarse"]
)
@pytest.mark.parametrize("pair", [("attention", "gated"), ("cross_attention", "cross_attention"), ("max", "bilinear")])
def test_checkpointing_changes_no_bit(pair, head):
    plain, recomputed = trained(joining(*pair, *head)), trained(joining(*pair, *head))
    assert recomputed.enable_gradient_checkpointing(segments=4).segments == 4
    inputs = studies()
    first, second = step(plain, inputs), step(recomputed, inputs)
    assert len(first[0]) == (2 if head else 1) and all(map(torch.equal, first[0], second[0]))
    for before, after in zip(first[1:], second[1:]):
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(gradient is not None for gradient in first[1].values())


@pytest.mark.parametrize("norms", ["batch", "group"])
def test_statistics_are_those_of_the_images_that_are_there(norms):
    """Missing views and studies without an image move none; of the head's own, studies count."""
    study, alone, inputs = joining("mean", "gated", f"MODEL.norm={norms}"), network(f"MODEL.norm={norms}"), studies()
    _, _, buffers = step(study, inputs)
    _, _, expected = step(alone, inputs.image)
    assert len(expected) > 10 and all(torch.equal(buffers[name], buffer) for name, buffer in expected.items())


@pytest.mark.parametrize(("aggregator", "fusion"), [*zip(AGGREGATORS, FUSIONS)])
def test_volumes(aggregator, fusion):
    model = trained(joining(aggregator, fusion, *VOLUMES)).eval()
    inputs = studies(channels=1, size=(32, 32, 32))
    with torch.no_grad():
        together, alone = model(inputs), [model(part) for part in inputs.split(4)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=0, atol=1e-5)
    assert model.view_weights(inputs).sum(1).tolist() == pytest.approx([1, 1, 0, 1])


def test_studies_without_any_image():
    """Tables alone: the backbone is not asked, and nothing is made up for it."""
    model, inputs = trained(joining("attention", "concatenate")), studies()
    tables = inputs._replace(image=inputs.image[:0], view_mask=MASK & False)
    logits, gradients, _ = step(model, tables)
    assert logits[0].shape == (4, 3) and not torch.equal(logits[0][0], logits[0][1])
    assert gradients["classifier.study.tokens.numbers"].ne(0).any()
    assert all(g is None for name, g in gradients.items() if name.startswith(("backbone.", "fusion.")))
    model.eval()
    row = model(inputs.split(4)[2])
    torch.testing.assert_close(row[0], model(inputs)[2], rtol=0, atol=1e-5)
    assert model.view_weights(tables).eq(0).all()


def test_weights_leave_the_network_as_it_was():
    model, inputs = trained(joining("attention", "attention")).train(), studies()
    before = copy.deepcopy(model.state_dict())
    weights = model.view_weights(inputs), model.table_weights(inputs)
    assert model.training and all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert [w.shape for w in weights] == [(4, 2), (4, 2)] and not any(w.requires_grad for w in weights)
    with pytest.raises(ModelError, match=r"MODEL.views.aggregator is null"):
        network().view_weights(inputs)


def test_what_it_was_not_built_for():
    inputs = studies()
    table_only = network("MODEL.table.fusion=gated", COLUMNS)
    with pytest.raises(ModelError, match=r"one view a study, not up to 2: MODEL.views.aggregator joins several"):
        table_only(inputs)
    with pytest.raises(ModelError, match="a table of 2 columns, not 3"):
        table_only(Inputs.of_images(inputs.image)._replace(table=torch.zeros(4, 3), table_mask=torch.ones(4, 3).bool()))
    views_only = network("MODEL.views.aggregator=max", KINDS)
    with pytest.raises(ModelError, match="a table of 0 columns, not 2"):
        views_only(inputs)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["MODEL.views.aggregator=max"], "MODEL.view_kinds is still null"),
        (["MODEL.table.fusion=gated"], "MODEL.table_columns is still null"),
        (["MODEL.views.aggregator=maximum"], "max, mean, attention, cross_attention, learned_weight"),
        (["MODEL.table.fusion=bilinaer"], "did you mean 'bilinear'"),
        (["MODEL.view_kinds=[a, b]"], "MODEL.views.aggregator is null"),
        (["MODEL.views.aggregator=max", "MODEL.view_kinds=[a, a]"], "each once"),
        (["MODEL.table_columns={age: numeric}"], "MODEL.table.fusion is null"),
        (["MODEL.table.fusion=gated", "MODEL.table_columns={}"], "names no column"),
        (["MODEL.table.fusion=gated", "MODEL.table_columns={age: 0}"], "MODEL.table_columns"),
        (["MODEL.views.dropout=1"], "less than 1"),
        (["MODEL.views.backbones=separate"], "set MODEL.views.aggregator"),
        (
            ["MODEL.views={aggregator: max, backbones: separate}", "MODEL.gradient_checkpointing.enabled=true"],
            "MODEL.gradient_checkpointing is not planned for",
        ),
    ],
)
def test_settings_that_do_not_go_together(overrides, words):
    with pytest.raises(ConfigError, match=words):
        network(*overrides)


@pytest.mark.parametrize(
    ("key", "given", "name"),
    [
        ("table.fusion", "concat", "concatenate"),
        ("table.fusion", "gate", "gated"),
        ("table.fusion", "attn", "attention"),
        ("table.fusion", "cross_attn", "cross_attention"),
        ("views.aggregator", "cross_view_attention", "cross_attention"),
        ("views.aggregator", "attn", "attention"),
    ],
)
def test_names_that_others_use(key, given, name):
    section, setting = key.split(".")
    assert Config.from_overrides([f"MODEL.{key}={given}"]).MODEL[section][setting] == name


def separate() -> HybridMedNet:
    """Two backbones of different weights."""
    parts = "MODEL.views={aggregator: max, width: 8, backbones: separate}"
    model = network(parts, KINDS, "MODEL.table={fusion: gated, width: 8}", COLUMNS)
    torch.manual_seed(3)
    for parameter in model.view_backbones.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def test_separate_backbones_begin_as_the_shared_one():
    shared, parts = joining("max", "gated"), "MODEL.views={aggregator: max, width: 8, backbones: separate}"
    both = network(parts, KINDS, "MODEL.table={fusion: gated, width: 8}", COLUMNS)
    assert all(torch.equal(both.state_dict()[name], tensor) for name, tensor in shared.state_dict().items())
    inputs = studies()
    torch.testing.assert_close(both.eval()(inputs), shared.eval()(inputs), rtol=0, atol=1e-6)
    images = torch.randn(3, 3, 32, 32)
    assert torch.equal(both(images), shared(images))


def test_each_view_goes_through_the_backbone_of_its_kind():
    model, inputs = separate(), studies()
    kinds = inputs.view_kind[inputs.view_mask].tolist()
    with torch.no_grad():
        model.eval()
        levels = model.forward_features(inputs.image, inputs)
        for i, kind in enumerate(kinds):
            backbone = model.view_backbones[0] if kind else model.backbone
            for found, expected in zip(levels, backbone.forward_features(inputs.image[i : i + 1]), strict=True):
                torch.testing.assert_close(found[i : i + 1], expected, rtol=0, atol=1e-5)
        state = State(inputs.image)
        for block in model.blocks(inputs):
            state = block.run(state)
        assert torch.equal(state.logits, model(inputs))


def test_statistics_of_a_backbone_are_of_its_own_kind():
    model, inputs = separate(), studies()
    frontal = inputs._replace(view_kind=torch.zeros_like(inputs.view_kind))
    _, gradients, buffers = step(copy.deepcopy(model), frontal)
    untouched = {name: buffer for name, buffer in model.named_buffers() if name.startswith("view_backbones.")}
    assert untouched and all(torch.equal(buffers[name], buffer) for name, buffer in untouched.items())
    assert all(g is None for name, g in gradients.items() if name.startswith("view_backbones."))
    with pytest.raises(ModelError, match=r"not planned for MODEL\.views\.backbones 'separate'"):
        model.enable_gradient_checkpointing(2)
