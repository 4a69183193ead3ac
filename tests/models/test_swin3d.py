"""Swin for volumes against slow loops and torchvision's network; its published weights without a network."""

import copy
import math
import pickle
import urllib.error

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d, SwinTransformer3d
from torchvision.models.video.swin_transformer import swin3d_t as torchvisions_tiny

from configs.errors import ModelError
from models.backbones import swin3d
from models.backbones.swin3d import SWIN3D_VARIANTS, PatchMerging, Swin3DSpec, SwinTransformer3D, from_video_swin
from models.backbones.window_attention import WINDOW, WindowAttention

MICRO = Swin3DSpec(8, (2, 2, 2, 1), (1, 2, 2, 4), "Swin3D_T_Weights")


@pytest.fixture(autouse=True)
def micro(monkeypatch):
    """A variant that is small enough for float64."""
    monkeypatch.setitem(SWIN3D_VARIANTS, "micro", MICRO)


def used(module: nn.Module) -> nn.Module:
    """Norms and biases away from one and zero, linear layers of a size that makes attention uneven."""
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.3)
        else:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    for module_ in module.modules():
        if hasattr(module_, "relative_position_bias_table"):
            nn.init.normal_(module_.relative_position_bias_table)
    return module.double()


def volume(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# ---- shapes


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 32, 32), (16, 64, 64), (20, 33, 47), (1, 5, 2)], ids=str)
def test_any_size_gives_four_levels(size, in_channels):
    backbone = SwinTransformer3D("micro", in_channels=in_channels, feature_dim=5)
    x = torch.randn(2, in_channels, *size)
    for level, channels, stride in zip(
        backbone.forward_features(x), backbone.feature_channels, backbone.feature_strides, strict=True
    ):
        assert level.shape == (2, channels, *(-(-side // stride) for side in size)) and level.isfinite().all()
    assert backbone.spatial_dims == 3 and backbone(x).shape == (2, 5)


@pytest.mark.parametrize("variant, millions, blocks", [("tiny", 29.4, 16), ("small", 51.0, 28), ("base", 90.3, 28)])
def test_variants(variant, millions, blocks):
    with torch.device("meta"):
        backbone = SwinTransformer3D(variant, in_channels=1)
        x = torch.empty(1, 1, 64, 64, 64)
        levels = backbone.forward_features(x)
    assert [tuple(y.shape[1:]) for y in levels] == [
        (c, 64 // s, 64 // s, 64 // s) for c, s in zip(backbone.feature_channels, backbone.feature_strides)
    ]
    assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    assert len(backbone.blocks(x)) == blocks
    assert backbone.image_size == (64, 64, 64)


def test_an_unknown_variant_is_refused():
    with pytest.raises(ModelError, match="'huge': one of tiny, small, base"):
        SwinTransformer3D("huge")


def test_blocks_are_the_architectures_own():
    names = [step.name for step in SwinTransformer3D("micro").blocks(torch.empty(0))]
    assert names[:5] == ["patch_embed", "level 0 block 0", "level 0 block 1", "merging 1", "level 1 block 0"]
    assert len(names) == 1 + 7 + 3 and names[-1] == "level 3 block 0"


def test_a_step_reaches_every_parameter():
    backbone = SwinTransformer3D("micro", in_channels=1, drop_path=0.1).train()
    torch.manual_seed(0)
    sum(y.square().sum() for y in backbone.forward_features(torch.randn(4, 1, 36, 40, 64))).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_drop_path_grows_with_depth_and_acts_in_training_only():
    backbone, x = SwinTransformer3D("micro", drop_path=0.3), torch.randn(2, 3, 16, 16, 16)
    rates = [m.drop_prob for m in backbone.modules() if hasattr(m, "drop_prob")]
    assert rates == pytest.approx([0.3 * i / 6 for i in range(7)])
    assert not torch.equal(backbone.train()(x), backbone(x))
    assert torch.equal(backbone.eval()(x), backbone(x))


def test_copies_and_bfloat16():
    backbone, x = SwinTransformer3D("micro").eval(), torch.randn(1, 3, 40, 24, 32)
    expected = backbone(x)
    for again in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert torch.equal(again(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(backbone(x).float(), expected, rtol=0.1, atol=0.1)
    assert backbone.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


# ---- attention in windows


def looped_attention(module: WindowAttention, x: torch.Tensor) -> torch.Tensor:
    """One place at a time: whom it sees is decided from its coordinates, without rolling or padding anything."""
    size, heads = x.shape[1:4], module.heads
    qkv = module.qkv(x)
    query, key, value = qkv.unflatten(-1, (3, heads, -1)).unbind(-3)
    table = module.relative_position_bias_table.view(*[2 * WINDOW - 1] * 3, heads)
    sides, shifts = [], []
    for length in size:
        count = math.ceil(length / WINDOW)
        sides.append(math.ceil(length / count))
        shifts.append(sides[-1] // 2 if module.shifted and count > 1 else 0)

    def window_of(position):
        # A shifted grid has an incomplete window at either end; they are windows of their own.
        return tuple((p - shift) // side for p, side, shift in zip(position, sides, shifts))

    positions = list(np.ndindex(*size))
    y = torch.empty_like(x)
    for b in range(len(x)):
        for position in positions:
            seen = [other for other in positions if window_of(other) == window_of(position)]
            for h in range(heads):
                scores = torch.stack(
                    [
                        query[(b, *position, h)] @ key[(b, *other, h)] * query.shape[-1] ** -0.5
                        + table[(*(p - o + WINDOW - 1 for p, o in zip(position, other)), h)]
                        for other in seen
                    ]
                )
                weights = scores.softmax(0)
                part = slice(h * query.shape[-1], (h + 1) * query.shape[-1])
                y[(b, *position, part)] = sum(w * value[(b, *other, h)] for w, other in zip(weights, seen))
    return module.proj(y)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size", [(2, 3, 4), (8, 1, 2), (1, 9, 3), (2, 8, 9), (15, 1, 2)], ids=str)
def test_window_attention_is_the_loop(size, shifted):
    """One window, whole windows, padded ones, three in a row."""
    module = used(WindowAttention(6, 2, shifted))
    x = volume(2, *size, 6)
    with torch.no_grad():
        torch.testing.assert_close(module(x), looped_attention(module, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size", [(7, 7, 7), (14, 7, 14), (3, 7, 14)], ids=str)
def test_window_attention_is_torchvisions_where_windows_are_whole(size, shifted):
    mine = used(WindowAttention(6, 2, shifted))
    theirs = ShiftedWindowAttention3d(6, [7, 7, 7], [3 * shifted] * 3, 2).double()
    theirs.load_state_dict({**theirs.state_dict(), **mine.state_dict()})
    x = volume(2, *size, 6)
    torch.testing.assert_close(mine(x), theirs(x), rtol=1e-10, atol=1e-10)


def test_padding_is_not_seen():
    """A place of a padded window answers as if nothing were beyond the border: biases of keys cannot leak in."""
    module, x = used(WindowAttention(6, 2, True)), volume(1, 9, 1, 1, 6)
    with torch.no_grad():
        module.qkv.bias[6:] += 5
        torch.testing.assert_close(module(x), looped_attention(module, x), rtol=1e-10, atol=1e-10)


def test_merging_takes_each_of_the_eight_neighbours_once():
    merging = used(PatchMerging(2))
    x = volume(1, 3, 4, 5, 2)
    y, padded = merging(x), torch.zeros(1, 4, 4, 6, 2, dtype=torch.float64)
    padded[:, :3, :, :5] = x
    assert y.shape == (1, 2, 2, 3, 4)
    for d, h, w in np.ndindex(2, 2, 3):
        eight = [padded[0, 2 * d + i, 2 * h + j, 2 * w + k] for i, k, j in np.ndindex(2, 2, 2)]
        expected = merging.reduction(F.layer_norm(torch.cat(eight), (16,), merging.norm.weight, merging.norm.bias))
        torch.testing.assert_close(y[0, d, h, w], expected, rtol=1e-12, atol=1e-12)


# ---- published weights


def torchvisions(spec: Swin3DSpec = MICRO) -> nn.Module:
    return SwinTransformer3d([2, 4, 4], spec.channels, list(spec.depths), list(spec.heads), [8, 7, 7])


def test_on_a_volume_that_is_constant_along_depth_the_converted_network_is_torchvisions():
    """With position tables that are constant along depth too, all that differs in depth must not matter."""
    theirs = used(torchvisions()).eval()
    for module in theirs.modules():
        if isinstance(module, ShiftedWindowAttention3d):
            table = module.relative_position_bias_table.data.view(15, 13, 13, -1)
            table.copy_(table[7].clone().expand_as(table))
    mine = SwinTransformer3D("micro").double().eval()
    mine.load_state_dict({**mine.state_dict(), **from_video_swin(theirs.state_dict(), 3, "micro")})
    x = volume(1, 3, 1, 224, 224)
    with torch.no_grad():
        expected = theirs.norm(theirs.features(theirs.patch_embed(x.expand(-1, -1, 2, -1, -1)))).movedim(-1, 1)
        result = mine.forward_features(x.expand(-1, -1, 32, -1, -1))[-1]
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)


def test_which_published_tensors_are_taken():
    """Names and shapes of the whole tiny network: every tensor of ours has a source or is said to start fresh."""
    with torch.device("meta"):
        weights = torchvisions_tiny().state_dict()
        mine = SwinTransformer3D("tiny").state_dict()
    converted = from_video_swin(weights, 3, "swin3d_tiny")
    assert {k: v.shape for k, v in mine.items() if k in converted} == {k: v.shape for k, v in converted.items()}
    assert set(mine) - set(converted) == {f"norms.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")}
    left = {key for key in weights if key not in converted and not key.endswith("relative_position_index")}
    assert left == {"norm.weight", "norm.bias", "head.weight", "head.bias"}


def test_position_tables_keep_their_offsets():
    weights = torchvisions().state_dict()
    key = "features.0.0.attn.relative_position_bias_table"
    theirs = weights[key].view(15, 13, 13, 1)
    mine = from_video_swin(weights, 3, "micro")[key].view(13, 13, 13, 1)
    for offset in (-6, 0, 6):
        assert torch.equal(mine[offset + 6], theirs[offset + 7])


def test_one_channel_sums_the_filters_of_three():
    weights = torchvisions().state_dict()
    grey, colour = (SwinTransformer3D("micro", weights, n).double().eval() for n in (1, 3))
    x = volume(1, 1, 16, 16, 16)
    torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1, -1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("feature_dim", [None, 5])
def test_its_own_weights_load_strictly(feature_dim):
    source = used(SwinTransformer3D("micro", feature_dim=feature_dim)).float().state_dict()
    again = SwinTransformer3D("micro", source, feature_dim=feature_dim).state_dict()
    assert all(torch.equal(tensor, source[key]) for key, tensor in again.items())
    del source["features.2.1.mlp.3.bias"]
    with pytest.raises(ModelError, match=r"do not fit swin3d_micro: .*features\.2\.1\.mlp\.3\.bias"):
        SwinTransformer3D("micro", source, feature_dim=feature_dim)


def damaged(change: dict) -> dict:
    return torchvisions().state_dict() | change


@pytest.mark.parametrize(
    "weights, match",
    [
        (lambda: damaged({"extra": torch.zeros(1)}), "extra"),
        (lambda: damaged({"patch_embed.proj.weight": torch.zeros(8, 3)}), "do not fit"),
        (lambda: damaged({"features.1.reduction.weight": torch.zeros(3)}), "do not fit"),
        (lambda: damaged({"features.0.0.attn.relative_position_bias_table": torch.zeros(7, 1)}), "do not fit"),
        (lambda: torchvisions(Swin3DSpec(12, (2, 2, 2, 1), (1, 2, 2, 4), "")).state_dict(), "size mismatch"),
        (lambda: torchvisions(Swin3DSpec(8, (2, 2, 2, 2), (1, 2, 2, 4), "")).state_dict(), r"features\.6\.1"),
        (lambda: {"conv1.weight": torch.zeros(1)}, "do not fit"),
    ],
    ids=["extra", "stem", "merging", "table", "wider", "deeper", "other network"],
)
def test_other_weights_are_refused(weights, match):
    with pytest.raises(ModelError, match=match):
        SwinTransformer3D("micro", weights())


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of torch.hub, and no network."""

    def unreachable(*_arguments, **_options):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("variant", ["tiny", "small", "base"])
def test_without_network_and_cache_the_ways_on_are_named(variant, hub):
    with pytest.raises(
        ModelError, match=rf"swin3d_{variant[0]}.*'swin3d_{variant}' are not available.*no route"
    ) as caught:
        swin3d.published_weights(SWIN3D_VARIANTS[variant], variant)
    assert all(way in str(caught.value) for way in ("MODEL.pretrained=false", "MODEL.pretrained=/"))


def test_cached_weights_are_read_without_network(hub):
    weights = torchvisions().state_dict()
    hub.mkdir()
    torch.save(weights, hub / "swin3d_t-7615ae03.pth")
    backbone = SwinTransformer3D("micro", weights=True)
    assert torch.equal(backbone.norms[3].weight, weights["norm.weight"])
    assert torch.equal(backbone.features[4][1].attn.qkv.weight, weights["features.4.1.attn.qkv.weight"])


def test_a_download_is_checked_by_its_hash(hub, monkeypatch):
    asked = {}

    def download(url, path, hash_prefix, progress):
        asked.update(url=url, hash=hash_prefix)
        torch.save(torchvisions().state_dict(), path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    SwinTransformer3D("micro", weights=True)
    assert asked == {"url": "https://download.pytorch.org/models/swin3d_t-7615ae03.pth", "hash": "7615ae03"}
