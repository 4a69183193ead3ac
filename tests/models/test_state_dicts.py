"""HybridMedNet.load_state_dict: old and prefixed names are taken, and what does not fit changes nothing."""

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from configs.default_config import Config
from configs.errors import ModelError, WeightsError
from models import HybridMedNet
from models.legacy import rename_previous_release
from models.state_dicts import plain_name

CLASSES = 3


@pytest.fixture
def model() -> HybridMedNet:
    return network()


def network(**model_settings) -> HybridMedNet:
    """Small, classic, with random running statistics, so that every tensor differs between two of them."""
    small = {"fpn_channels": 16, "fusion_channels": 16, "num_classes": CLASSES}
    config = Config()
    for key, value in (
        {"backbone": "timm/test_resnet", "attention": "cbam", "fpn": True, "pretrained": False} | small | model_settings
    ).items():
        config.MODEL[key] = value
    config.DATA.image_size = 32
    built = HybridMedNet(config).eval()
    for name, tensor in built.state_dict().items():
        if "running" in name:
            tensor.uniform_(0.5, 1)
    return built


def copy_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(model: nn.Module, expected: dict[str, Tensor]) -> None:
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name, tensor in found.items() if not torch.equal(tensor, expected[name])] == []


def old_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the previous release would have called them: an independent way back."""
    old = {}
    for name, tensor in weights.items():
        if name.startswith("classifier.classifiers."):
            part = name.removeprefix("classifier.classifiers.")
            position = {"hidden.weight": "0.weight", "hidden.bias": "0.bias", "weight": "3.weight", "bias": "3.bias"}[
                part
            ]
            for k, rows in enumerate(tensor.chunk(CLASSES)):
                old[f"classifier.classifiers.{k}.{position}"] = rows
        elif name == "fusion.weight_generator.weight":
            old["fusion.weight_generator.1.weight"] = tensor[..., None, None]
        else:
            name = name.replace("backbone.body.conv1.", "feature_extractor.backbone.conv1.0.")
            name = name.replace("backbone.body.bn1.", "feature_extractor.backbone.conv1.1.")
            name = name.replace("backbone.body.", "feature_extractor.backbone.")
            name = f"feature_extractor.{name}" if name.startswith("fpn.") else name
            old[name.replace("weight_generator.", "weight_generator.1.")] = tensor
    return old


WRITERS = {
    "today": lambda weights: weights,
    "ordered": OrderedDict,
    "module.": lambda weights: {f"module.{name}": tensor for name, tensor in weights.items()},
    "module._orig_mod.": lambda weights: {f"module._orig_mod.{name}": tensor for name, tensor in weights.items()},
    "compiled backbone": lambda weights: {
        name.replace("backbone.", "backbone._orig_mod."): tensor for name, tensor in weights.items()
    },
    "parallel backbone": lambda weights: {
        name.replace("backbone.", "backbone.module."): tensor for name, tensor in weights.items()
    },
    "old": old_names,
    "old, parallel parts": lambda weights: {
        name.replace("feature_extractor.", "feature_extractor.module.").replace(
            "fusion.", "fusion._orig_mod.module."
        ): t
        for name, t in old_names(weights).items()
    },
    "old, some prefixed": lambda weights: {
        f"module.{name}" if name.startswith("f") else name: tensor for name, tensor in old_names(weights).items()
    },
}


@pytest.mark.parametrize("assign", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_every_writing_is_loaded_bit_for_bit(write, assign, model):
    expected = copy_of(network())
    result = model.load_state_dict(write(expected), assign=assign)
    assert result.missing_keys == result.unexpected_keys == []
    assert_equal(model, expected)


def test_real_wrappers_write_what_is_read(model):
    expected = copy_of(network())
    source = network()
    source.load_state_dict(expected)
    model.load_state_dict(nn.DataParallel(torch.compile(source)).state_dict())
    assert_equal(model, expected)
    source.backbone = nn.DataParallel(source.backbone)
    assert "backbone.module.body.conv1.0.weight" in source.state_dict()
    network().load_state_dict(source.state_dict())
    source.load_state_dict(expected)
    assert_equal(source.backbone.module, {k[9:]: v for k, v in expected.items() if k.startswith("backbone.")})


def test_a_network_with_a_compiled_backbone_reads_plain_weights(model):
    expected = copy_of(network())
    model.backbone = torch.compile(model.backbone)
    assert any("_orig_mod" in name for name in model.state_dict())
    model.load_state_dict(expected)
    assert_equal(model.backbone._orig_mod, {k[9:]: v for k, v in expected.items() if k.startswith("backbone.")})


def test_tensors_can_be_taken_as_they_are(model):
    expected = copy_of(network())
    model.load_state_dict(old_names(expected), assign=True)
    assert_equal(model, expected)


def test_versions_of_layers_reach_torch(model):
    """Without them BatchNorm would take its own counter for one that a file lacks, and not tell."""
    weights = network().state_dict()
    lacking = [name for name in weights if name.endswith("num_batches_tracked")]
    for name in lacking:
        del weights[name]
    assert model.load_state_dict(weights, strict=False).missing_keys == lacking


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("module._orig_mod.module.fusion.x", "fusion.x"),
        ("backbone._orig_mod.conv1.weight", "backbone.conv1.weight"),
        ("feature_extractor.module.fpn._orig_mod.module.x", "feature_extractor.fpn.x"),
        ("module", "module"),
        ("modules.x", "modules.x"),
    ],
)
def test_plain_names(name, plain):
    assert plain_name(name) == plain


# ---- refusals


def without(name: str):
    return lambda weights: {key: tensor for key, tensor in weights.items() if key != name}


DAMAGES = {
    "missing": (without("fpn.lateral_convs.0.bias"), r"1 missing \(fpn\.lateral_convs\.0\.bias\)"),
    "unexpected": (lambda w: w | {"neck.weight": torch.zeros(1)}, r"1 unexpected \(neck\.weight\)"),
    "both": (
        lambda w: {name.replace("fusion.scale", "neck.scale"): tensor for name, tensor in w.items()},
        r"28 missing \((fusion\.\S+, ){10}…\); 28 unexpected \((neck\.\S+, ){10}…\)",
    ),
    "shape": (
        lambda w: w | {"classifier.classifiers.bias": torch.zeros(5)},
        r"1 of another shape \(classifier\.classifiers\.bias: \(5,\) instead of \(3,\)\)",
    ),
    "no tensor": (lambda w: w | {"classifier.classifiers.bias": "x"}, r"bias: str instead of \(3,\)"),
    "a whole checkpoint": (lambda w: {"epoch": 3, "model_state_dict": w}, "2 unexpected \\(epoch, model_state_dict"),
    "twice": (lambda w: w | {"module.fpn.lateral_convs.0.bias": torch.zeros(16)}, r"both be 'fpn\.lateral_convs\.0"),
    "old and new": (
        lambda w: w | {"feature_extractor.fpn.lateral_convs.0.bias": torch.zeros(16)},
        r"both be 'fpn\.lateral_convs\.0\.bias'",
    ),
    "old, a class too few": (
        lambda w: {n: t for n, t in old_names(w).items() if not n.startswith("classifier.classifiers.2.")},
        r"classifiers\.bias: \(2,\) instead of \(3,\)",
    ),
    "old, a class left out": (
        lambda w: {n: t for n, t in old_names(w).items() if not n.startswith("classifier.classifiers.1.")},
        r"has 2 classes, the last of them number 2, but lacks classifiers\.1\.0\.weight",
    ),
    "old, half a class": (
        lambda w: without("classifier.classifiers.1.3.bias")(old_names(w)),
        r"3 classes.*lacks classifiers\.1\.3\.bias",
    ),
    "old, classes that differ": (
        lambda w: old_names(w) | {"classifier.classifiers.1.3.bias": torch.zeros(2)},
        r"classes of these weights differ: classifiers\.\*\.3\.bias",
    ),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES)
def test_what_does_not_fit_is_told_and_changes_nothing(damage, words, model):
    before = copy_of(model)
    with pytest.raises(WeightsError, match=words) as caught:
        model.load_state_dict(damage(copy_of(network())))
    assert isinstance(caught.value, RuntimeError) and isinstance(caught.value, ModelError)
    assert_equal(model, before)


def quantised(tensor: Tensor) -> Tensor:
    return torch.quantize_per_tensor(tensor.detach(), 0.1, 0, torch.qint8)


BIAS = "classifier.classifiers.bias"  # the last but three of all names: whatever is loaded before it must not be
KINDS = {
    "meta": (BIAS, lambda t: t.to("meta"), r"a tensor without numbers \(meta\)"),
    "sparse": (BIAS, lambda t: t.to_sparse(), "layout sparse_coo"),
    "sparse rows": ("classifier.classifiers.weight", lambda t: t.to_sparse_csr(), "layout sparse_csr"),
    "quantised": (BIAS, quantised, "a quantised tensor"),
    "complex": (BIAS, lambda t: t + 1j, "complex64 instead of float32"),
    "integers": (BIAS, lambda t: t.to(torch.int64), "int64 instead of float32"),
    "booleans": (BIAS, lambda t: t > 0, "bool instead of float32"),
    "eight bits": (BIAS, lambda t: t.to(torch.float8_e4m3fn), "float8_e4m3fn instead of float32"),
    "a broken counter": ("backbone.body.bn1.num_batches_tracked", lambda t: t + 0.5, "float32 instead of int64"),
    "a true counter": ("backbone.body.bn1.num_batches_tracked", lambda t: t > 0, "bool instead of int64"),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per", "ignore:Sparse CSR")
@pytest.mark.parametrize(
    "write", [WRITERS["today"], pytest.param(old_names, marks=pytest.mark.slow)], ids=["today", "old"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_another_kind_change_nothing(kind, write, model):
    """torch would have copied all tensors before them, and then raised; or it would have converted them silently."""
    name, convert, words = KINDS[kind]
    before, weights = copy_of(model), write(copy_of(network()))
    if name not in weights:
        name = name.replace("backbone.body.bn1.", "feature_extractor.backbone.conv1.1.").replace(
            "classifiers.", "classifiers.1.3."
        )
        words = words if "counter" in kind else "classes of these weights differ"
    weights[name] = convert(weights[name])
    with pytest.raises(WeightsError, match=words):
        model.load_state_dict(weights)
    assert_equal(model, before)


def test_kinds_are_told_with_all_else(model):
    weights = copy_of(network())
    weights |= {BIAS: weights[BIAS].to("meta"), "fusion.weight_generator.bias": torch.zeros(9)}
    with pytest.raises(WeightsError, match=r"1 of another shape \(fusion.*1 of another kind \(classifier"):
        model.load_state_dict(weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_numbers_of_other_lengths_are_taken(dtype, model):
    expected = {n: t.to(dtype) if t.is_floating_point() else t.to(torch.int32) for n, t in copy_of(network()).items()}
    model.load_state_dict(expected)
    assert_equal(model, {n: t.to(o.dtype) for (n, t), o in zip(expected.items(), model.state_dict().values())})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_not_finite_are_said(value, model, caplog):
    model.load_state_dict(copy_of(network()))
    assert not caplog.records
    weights = {name: tensor.double() for name, tensor in copy_of(network()).items() if name.endswith(".bias")}
    weights[BIAS][1] = value
    model.load_state_dict(weights, strict=False)
    assert f"NaN or infinity in the weights: 1 tensors ({BIAS})" in caplog.text


def test_names_that_are_no_texts(model):
    before = copy_of(model)
    with pytest.raises(WeightsError, match=r"names must be texts, not 3, \('a',\)"):
        model.load_state_dict(copy_of(model) | {3: torch.zeros(1), ("a",): torch.zeros(1)})
    assert_equal(model, before)


def test_everything_that_differs_is_in_one_message(model):
    weights = without("fpn.lateral_convs.0.bias")(copy_of(network()))
    weights |= {"neck.weight": torch.zeros(1), "fpn.lateral_convs.1.bias": torch.zeros(4)}
    with pytest.raises(WeightsError, match=r"1 missing.*1 unexpected.*1 of another shape.*\(4,\) instead of \(16,\)"):
        model.load_state_dict(weights)


def test_not_strict_tells_both_differences_as_torch_does(model):
    expected = copy_of(network())
    weights = {f"module.{name}": tensor for name, tensor in without("fpn.lateral_convs.0.bias")(expected).items()}
    before = copy_of(model)
    result = model.load_state_dict(weights | {"neck.weight": torch.zeros(1)}, strict=False)
    assert result.missing_keys == ["fpn.lateral_convs.0.bias"] and result.unexpected_keys == ["neck.weight"]
    assert_equal(model, expected | {"fpn.lateral_convs.0.bias": before["fpn.lateral_convs.0.bias"]})


def test_not_strict_does_not_let_shapes_differ(model):
    before = copy_of(model)
    with pytest.raises(WeightsError, match="another shape"):
        model.load_state_dict(copy_of(network()) | {"fpn.lateral_convs.1.bias": torch.zeros(4)}, strict=False)
    assert_equal(model, before)


def test_what_is_no_state_dict_is_a_type_error(model):
    with pytest.raises(TypeError, match="list"):
        model.load_state_dict([])


@pytest.mark.parametrize(
    "settings",
    [{}, {"hierarchical": True}, {"backbone": "convnext_tiny", "attention": "auto", "fpn": "auto", "num_heads": 1}],
    ids=str,
)
def test_no_name_of_today_is_taken_for_an_old_one(settings):
    weights = network(**settings).state_dict()
    renamed = rename_previous_release(weights)
    assert renamed.keys() == weights.keys() and all(renamed[name] is weights[name] for name in weights)
    assert [name for name in weights if plain_name(name) != name] == []
