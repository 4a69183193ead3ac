"""Vision Mamba against the facts about the released files and against an implementation written out in loops."""

import argparse
import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.errors import CheckpointError, ModelError
from models.backbones import create_backbone
from models.backbones.vision_mamba import (
    VIM_VARIANTS,
    Layer,
    VisionMamba,
    VisionMambaNet,
    load_released,
    resize_positions,
)
from training.optim import parameter_groups
from utils.checkpoint import load_checkpoint, save_checkpoint

DEPTH = 24


def released_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a released file at 224 px with 1,000 classes."""
    inner, rank, states = 2 * width, math.ceil(width / 16), 16
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 197, width), "norm_f.weight": (width,)}
    shapes |= {"patch_embed.proj.weight": (width, 3, 16, 16), "patch_embed.proj.bias": (width,)}
    shapes |= {"head.weight": (1000, width), "head.bias": (1000,)}
    for n in range(DEPTH):
        shapes[f"layers.{n}.norm.weight"] = (width,)
        mixer = {"in_proj.weight": (2 * inner, width), "out_proj.weight": (width, inner)}
        for b in ("", "_b"):
            mixer |= {f"conv1d{b}.weight": (inner, 1, 4), f"conv1d{b}.bias": (inner,)}
            mixer |= {f"x_proj{b}.weight": (rank + 2 * states, inner)}
            mixer |= {f"dt_proj{b}.weight": (inner, rank), f"dt_proj{b}.bias": (inner,), f"D{b}": (inner,)}
        mixer |= {"A_log": (inner, states), "A_b_log": (inner, states)}
        shapes |= {f"layers.{n}.mixer.{name}": shape for name, shape in mixer.items()}
    return shapes


@pytest.mark.parametrize("variant, parameters", [("tiny", 7_148_008), ("small", 25_796_584), ("base", 97_598_440)])
def test_names_shapes_and_numbers_are_those_of_the_released_files(variant, parameters):
    with torch.device("meta"):
        network = VisionMambaNet(VIM_VARIANTS[variant][0])
    found = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert found == released_shapes(VIM_VARIANTS[variant][0]) and len(found) == 415
    assert sum(p.numel() for p in network.parameters()) == parameters


# ---- numbers


def small_network(**options) -> VisionMambaNet:
    """Every parameter away from where it begins, so that none can be left out unnoticed."""
    torch.manual_seed(0)
    network = VisionMambaNet(**{"width": 32, "grid": (3, 4), "depth": 3, "num_classes": 5} | options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network.eval()


def slow_direction(x: Tensor, p: dict[str, Tensor], b: str) -> Tensor:
    """One direction of a mixer, step by step in float64. x [L, inner]."""
    length, inner = x.shape
    weight, bias = p[f"conv1d{b}.weight"], p[f"conv1d{b}.bias"]
    convolved = torch.zeros_like(x)
    for t in range(length):
        for k in range(4):
            if t - 3 + k >= 0:
                convolved[t] += weight[:, 0, k] * x[t - 3 + k]
    x = F.silu(convolved + bias)
    A, D = -torch.exp(p[f"A{b}_log"]), p[f"D{b}"]
    rank = p[f"dt_proj{b}.weight"].shape[1]
    h, rows = torch.zeros(inner, 16, dtype=x.dtype), []
    for t in range(length):
        projected = p[f"x_proj{b}.weight"] @ x[t]
        dt, B, C = projected[:rank], projected[rank : rank + 16], projected[rank + 16 :]
        delta = torch.log1p(torch.exp(p[f"dt_proj{b}.weight"] @ dt + p[f"dt_proj{b}.bias"]))
        h = torch.exp(delta[:, None] * A) * h + (delta * x[t])[:, None] * B
        rows.append(h @ C + D * x[t])
    return torch.stack(rows)


def slow_mixer(tokens: Tensor, p: dict[str, Tensor]) -> Tensor:
    x, z = (tokens @ p["in_proj.weight"].T).chunk(2, dim=-1)
    ahead, back = slow_direction(x, p, ""), slow_direction(x.flip(0), p, "_b").flip(0)
    return ((ahead + back) / 2 * F.silu(z)) @ p["out_proj.weight"].T


def slow_logits(weights: dict[str, Tensor], image: Tensor) -> Tensor:
    """The authors' order of events: hidden state and residual carried apart, the norm on their sum."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    patches = F.conv2d(image.double()[None], w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=16)
    tokens = patches[0].flatten(1).T
    middle = len(tokens) // 2
    hidden = torch.cat([tokens[:middle], w["cls_token"][0], tokens[middle:]]) + w["pos_embed"][0]
    residual = torch.zeros_like(hidden)

    def normed(x: Tensor, weight: Tensor) -> Tensor:
        return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-5) * weight

    for n in range(3):
        residual = residual + hidden
        prefix = f"layers.{n}.mixer."
        mixer = {name.removeprefix(prefix): tensor for name, tensor in w.items() if name.startswith(prefix)}
        hidden = slow_mixer(normed(residual, w[f"layers.{n}.norm.weight"]), mixer)
    return normed(residual + hidden, w["norm_f.weight"])[middle] @ w["head.weight"].T + w["head.bias"]


@pytest.mark.parametrize("grid", [(3, 4), (3, 3), (1, 1)], ids=str)
def test_logits_are_those_of_the_loops(grid):
    """Float64 stays float64 and leaves no room for another formula."""
    network, images = small_network(grid=grid), torch.randn(2, 3, 16 * grid[0], 16 * grid[1])
    with torch.no_grad():
        found = network(images)
        exact = torch.stack([slow_logits(network.state_dict(), image) for image in images])
        torch.testing.assert_close(network.double()(images.double()), exact, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


def test_the_middle_token_is_the_class_token_and_is_not_in_the_map():
    network = small_network()
    assert network.middle == 6
    with torch.no_grad():
        tokens = network.embed(torch.randn(1, 3, 48, 64))
        network.cls_token += 1
        moved = network.embed(torch.zeros(1, 3, 48, 64)) - tokens
        assert tokens.shape == (1, 13, 32)
        marked = torch.arange(13.0).view(1, 13, 1).expand(1, 13, 32) + torch.randn(32)
        found = network.to_map(marked)
        expected = network.norm_f(torch.cat([marked[:, :6], marked[:, 7:]], 1))
    assert moved.shape == (1, 13, 32)
    assert torch.equal(found.flatten(2).mT, expected)


# ---- weights


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> tuple[str, dict[str, Tensor]]:
    """A file like a released one: weights under 'model', the command line as a Namespace beside them."""
    torch.manual_seed(0)
    weights = {name: torch.randn(shape) * 0.02 for name, shape in released_shapes(192).items()}
    path = tmp_path_factory.mktemp("vim") / "vim_t.pth"
    torch.save({"model": weights, "args": argparse.Namespace(lr=1e-3, model="vim_tiny"), "epoch": 1}, path)
    return str(path), weights


def test_a_released_file_is_read(released):
    path, weights = released
    backbone = create_backbone("vim_tiny", path)
    state = backbone.body.state_dict()
    assert len(state) > 300
    for name, tensor in state.items():
        assert torch.equal(tensor, weights[name]), name


def test_a_released_file_fits_other_sizes_and_one_channel(released):
    path, weights = released
    backbone = create_backbone("vim_tiny", path, in_channels=1, image_size=(64, 96))
    state = backbone.body.state_dict()
    torch.testing.assert_close(
        state["patch_embed.proj.weight"], weights["patch_embed.proj.weight"].sum(1, keepdim=True)
    )
    assert torch.equal(state["pos_embed"], resize_positions(weights["pos_embed"], (4, 6)))


class Elsewhere:
    pass


def test_other_objects_in_a_file_are_refused(tmp_path):
    torch.save({"model": {"a": torch.zeros(1)}, "args": Elsewhere()}, tmp_path / "odd.pth")
    with pytest.raises(ModelError, match="more than tensors and plain values"):
        create_backbone("vim_tiny", str(tmp_path / "odd.pth"))


class Runs:
    """Something that would run when read."""

    def __reduce__(self):
        return print, ("it ran",)


def test_nothing_within_a_command_line_runs(tmp_path, capsys):
    torch.save({"model": {"a": torch.zeros(1)}, "args": argparse.Namespace(value=Runs())}, tmp_path / "odd.pth")
    with pytest.raises(ModelError, match="more than tensors and plain values"):
        create_backbone("vim_tiny", str(tmp_path / "odd.pth"))
    assert "it ran" not in capsys.readouterr().out


def test_checkpoints_of_this_program_hold_no_command_line(tmp_path):
    """Only files of weights that others published may."""
    with pytest.raises(CheckpointError):
        save_checkpoint({"model": {}, "args": argparse.Namespace()}, tmp_path / "last.pth")
    torch.save({"format_version": 1, "args": argparse.Namespace()}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "other.pth")


def test_the_released_file_is_asked_for_by_its_name(released, monkeypatch):
    path, weights = released
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *names, **_: asked.append(names) or path)
    backbone = VisionMamba("tiny", True)
    assert asked == [("hustvl/Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth")]
    assert torch.equal(backbone.body.pos_embed, weights["pos_embed"])


def test_what_does_not_fit_is_named():
    network = small_network(num_classes=0)
    weights = dict(network.state_dict())
    weights["stray"] = weights.pop("norm_f.weight")
    weights["layers.0.mixer.D"] = torch.zeros(3)
    with pytest.raises(ModelError) as caught:
        load_released(network, weights, "vim_test")
    for part in (
        "vim_test",
        "1 not in the file (norm_f.weight",
        "1 not in the network (stray",
        "mixer.D (3,) instead of (64,)",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 197, 384), (2, 5, 192), (1, 1, 192), (1, 0, 192), (197, 192)], ids=str)
def test_positions_that_are_none_are_refused(shape, released):
    with pytest.raises(ModelError) as caught:
        VisionMamba("tiny", released[1] | {"pos_embed": torch.ones(shape)})
    assert f"pos_embed {shape} instead of (1, 197, 192)" in str(caught.value)


def test_as_many_patches_in_another_order_are_another_grid(released):
    """112 × 448 has 7 × 28 patches, as many as 14 × 14."""
    old = released[1]["pos_embed"]
    new = VisionMamba("tiny", released[1], image_size=(112, 448)).body.pos_embed
    assert torch.equal(new, resize_positions(old, (7, 28))) and torch.equal(new[:, 98], old[:, 98])
    assert not torch.equal(new, old)


@pytest.mark.parametrize("grid", [(3, 4), (3, 3)], ids=str)
def test_positions_of_the_same_grid_are_kept(grid):
    weights, other = small_network(grid=grid, num_classes=0).state_dict(), VisionMambaNet(32, grid, 3, 0, depth=3)
    load_released(other, weights, "vim_test")
    assert torch.equal(other.pos_embed, weights["pos_embed"])


def test_positions_are_resized_about_the_middle():
    torch.manual_seed(0)
    old = torch.randn(1, 17, 8)
    assert torch.allclose(resize_positions(old, (4, 4)), old, atol=1e-6)
    new = resize_positions(old, (6, 5))
    assert new.shape == (1, 31, 8) and torch.equal(new[:, 15], old[:, 8])
    square = torch.cat([old[:, :8], old[:, 9:]], 1).reshape(1, 4, 4, 8).permute(0, 3, 1, 2)
    patches = F.interpolate(square, size=(6, 5), mode="bicubic", antialias=True).flatten(2).mT
    torch.testing.assert_close(torch.cat([new[:, :15], new[:, 16:]], 1), patches)
    flat = torch.cat([torch.ones(1, 8, 2), torch.full((1, 1, 2), 9.0), torch.ones(1, 8, 2)], 1)
    grown = resize_positions(flat, (7, 7))
    assert torch.allclose(torch.cat([grown[:, :24], grown[:, 25:]], 1), torch.ones(1, 49, 2), atol=1e-5)
    with pytest.raises(ModelError, match="18 patches, which are no square grid"):
        resize_positions(torch.zeros(1, 19, 8), (4, 4))


def test_published_weights_that_cannot_be_had_are_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelError, match=r"hustvl/Vim-tiny-midclstok of 'vim_tiny' are not available.*Three ways to continue"
    ):
        create_backbone("vim_tiny", True)


# ---- the backbone


def test_the_pyramid_of_a_padded_image():
    backbone = create_backbone("vim_tiny", image_size=(65, 71)).eval()
    with torch.no_grad():
        maps = backbone.forward_features(torch.randn(1, 3, 65, 71))
    assert [tuple(x.shape) for x in maps] == [(1, 192, 20, 20), (1, 192, 10, 10), (1, 192, 5, 5), (1, 192, 3, 3)]
    assert backbone.feature_strides == [4, 8, 16, 32] and len(backbone.blocks(torch.zeros(1, 3, 65, 71))) == 30


def test_other_sizes_and_variants_are_refused():
    with pytest.raises(ModelError, match=r"built for 64×64 images and got 96×64: set MODEL\.input_size"):
        create_backbone("vim_tiny", image_size=(64, 64)).forward_features(torch.randn(1, 3, 96, 64))
    with pytest.raises(ModelError, match="unknown Vision Mamba variant 'huge': one of tiny, small, base"):
        VisionMamba("huge")


def test_the_stream_is_float32_under_autocast():
    backbone = create_backbone("vim_tiny", image_size=(32, 32)).eval()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        x = backbone.body.embed(torch.randn(1, 3, 32, 32))
        assert x.dtype == torch.float32 and backbone.body.layers[0](x).dtype == torch.float32


def test_steps_begin_between_a_thousandth_and_a_tenth():
    steps = F.softplus(create_backbone("vim_tiny").body.layers[3].mixer.dt_proj.bias)
    assert steps.min() >= 1e-3 * 0.999 and steps.max() <= 0.1 * 1.001
    assert isinstance(steps, Tensor) and steps.log().std() > 1
    assert isinstance(create_backbone("vim_tiny").body.head, nn.Identity)


def test_one_channel_sees_what_three_equal_ones_see():
    colour = create_backbone("vim_tiny", image_size=(64, 96)).eval()
    grey = VisionMamba("tiny", colour.body.state_dict(), in_channels=1, image_size=(64, 96)).eval()
    grey.pyramid.load_state_dict(colour.pyramid.state_dict())
    x = torch.randn(1, 1, 64, 96)
    with torch.no_grad():
        for a, b in zip(grey.forward_features(x), colour.forward_features(x.expand(-1, 3, -1, -1))):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_bf16_throughout_is_near_float32():
    backbone = VisionMamba("tiny", feature_dim=10, image_size=(64, 64)).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, found = backbone(x), copy.deepcopy(backbone).bfloat16()(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert F.cosine_similarity(found.float(), expected).min() > 0.99


def test_every_parameter_has_a_gradient():
    """The class token's reaches it through the patches that the scans read after it."""
    torch.manual_seed(0)
    backbone = VisionMamba("tiny", feature_dim=10, image_size=(64, 64))
    x = torch.randn(2, 3, 64, 64)
    (sum(level.square().mean() for level in backbone.forward_features(x)) + backbone(x).sum()).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_copies_are_equal():
    backbone = VisionMamba("tiny", image_size=(32, 32)).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        for other in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
            assert torch.equal(other(x), backbone(x))


def test_drop_path_rises_from_none_and_leaves_out_whole_mixers():
    rates = [layer.drop_path.drop_prob for layer in VisionMambaNet(32, (2, 2), drop_path=0.2).layers]
    assert rates == pytest.approx([0.2 * i / 23 for i in range(24)])
    torch.manual_seed(0)
    layer, x = Layer(32, 0.5), torch.randn(16, 4, 32)
    added, taken = layer.eval()(x) - x, layer.train()(x) - x
    dropped = taken.flatten(1).abs().sum(1) == 0
    assert 0 < dropped.sum() < 16
    torch.testing.assert_close(taken[~dropped], 2 * added[~dropped], rtol=1e-4, atol=1e-6)


def test_initial_values_are_the_authors():
    torch.manual_seed(0)
    network = VisionMambaNet(192, depth=4, num_classes=0)
    for mixer in (layer.mixer for layer in network.layers):
        for decay in (mixer.A_log, mixer.A_b_log):
            torch.testing.assert_close(decay.exp(), torch.arange(1.0, 17).expand(384, 16))
        assert (mixer.D == 1).all() and (mixer.D_b == 1).all()
        assert mixer.out_proj.weight.abs().max() <= 384**-0.5 / 2
    assert network.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert network.patch_embed.proj.weight.std().item() == pytest.approx(768**-0.5, rel=0.05)
    assert (network.patch_embed.proj.bias == 0).all()


def test_embeddings_and_decays_are_spared_weight_decay():
    backbone = VisionMamba("tiny", image_size=(32, 32))
    names = {p: name for name, p in backbone.named_parameters()}
    decayed = {names[p] for p in parameter_groups(nn.Sequential(backbone), 0.1)[0]["params"]}
    assert {"body.patch_embed.proj.weight", "body.layers.0.mixer.in_proj.weight"} <= decayed
    assert not [name for name in decayed if name.endswith(("_log", "pos_embed", "cls_token", "norm.weight", ".D_b"))]
