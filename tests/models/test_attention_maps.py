"""`get_attention_maps` gives the weights that the forward pass uses: each module's output follows from them."""

import pytest
import torch
from einops import rearrange

from configs.default_config import Config
from models import HybridMedNet, create_backbone
from models.attention import CBAM, CBAMMaps, TokenMaps, create_attention
from models.layers import pooled_tokens

CHANNELS = [8, 16, 24]
SIZES = {2: [(12, 9), (6, 5), (3, 2)], 3: [(5, 6, 7), (3, 3, 4), (2, 2, 2)]}


def levels(spatial_dims: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(2, c, *s, generator=generator, dtype=torch.float64) for c, s in zip(CHANNELS, SIZES[spatial_dims])
    ]


def randomised(mode: str, spatial_dims: int):
    """Away from initial values that hide mistakes (ones, zeros, 0.1)."""
    torch.manual_seed(0)
    attention = create_attention(mode, CHANNELS, 4, spatial_dims)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attention.double().eval()


def answer_of(attention, x: torch.Tensor, context: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """x + gamma · W_o (weights · v), the values computed here from the context."""
    value = rearrange(attention.key_value(context).chunk(2, -1)[1], "b n (h d) -> b h n d", h=attention.num_heads)
    update = attention.out(rearrange(weights @ value, "b h n d -> b n (h d)")) * attention.gamma
    return x + rearrange(update, "b n c -> b c n").reshape(x.shape)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_cbam_output_follows_from_its_maps(spatial_dims):
    attention, features = randomised("cbam", spatial_dims), levels(spatial_dims)
    maps = attention.attention_maps(features)
    assert list(maps) == [0, 1, 2]
    for i, (x, y) in enumerate(zip(features, attention(features))):
        assert isinstance(maps[i], CBAMMaps)
        assert maps[i].channel.shape == x.shape[:2] and maps[i].spatial.shape == (2, 1, *x.shape[2:])
        channel = maps[i].channel.reshape(*x.shape[:2], *[1] * spatial_dims)
        torch.testing.assert_close(x * channel * maps[i].spatial, y, atol=1e-9, rtol=0)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_multi_scale_output_follows_from_its_maps(spatial_dims):
    attention, features = randomised("multi_scale", spatial_dims), levels(spatial_dims)
    maps = attention.attention_maps(features)
    for i, (x, y) in enumerate(zip(features, attention(features))):
        ((source, grid),) = maps[i].sources
        tokens = pooled_tokens(x, attention.grid)
        assert source == i and maps[i].spatial_shape == tuple(x.shape[2:])
        assert tokens.shape[1] == torch.tensor(grid).prod() == maps[i].weights.shape[-1]
        context = attention.context_norms[i](tokens)
        torch.testing.assert_close(answer_of(attention.levels[i], x, context, maps[i].weights), y, atol=1e-9, rtol=0)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_cross_scale_output_follows_from_its_maps(spatial_dims):
    attention, features = randomised("cross_scale", spatial_dims), levels(spatial_dims)
    maps, outputs = attention.attention_maps(features), attention(features)
    tokens = {
        i: project(pooled_tokens(x, attention.grid)) + attention.level_embeddings[i]
        for i, (project, x) in enumerate(zip(attention.projections, features))
    }
    for i, (x, y) in enumerate(zip(features, outputs)):
        assert [level for level, _ in maps[i].sources] == [j for j in range(3) if j != i]
        context = torch.cat([tokens[level] for level, _ in maps[i].sources], dim=1)
        torch.testing.assert_close(answer_of(attention.levels[i], x, context, maps[i].weights), y, atol=1e-9, rtol=0)
        parts = maps[i].by_source()
        assert sum(part.flatten(3).sum(-1) for part in parts.values()).sub(1).abs().max() < 1e-9
        for level, grid in maps[i].sources:
            assert parts[level].shape == (2, 4, x[0, 0].numel(), *grid)


def config_of(mode: str, **model) -> Config:
    config = Config()
    values = {"backbone": "resnet18", "pretrained": False, "fpn_channels": 16, "fusion_channels": 16, "num_classes": 3}
    for key, value in {**values, "attention": mode, "input_size": 64, **model}.items():
        config.MODEL[key] = value
    config.DATA.image_size = 64
    return config


@pytest.mark.parametrize("mode", ["cbam", "multi_scale", "cross_scale", "none"])
def test_of_a_whole_network(mode):
    torch.manual_seed(0)
    model = HybridMedNet(config_of(mode)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(2, 3, 64, 64)
    maps = model.get_attention_maps(x)
    assert model.training and all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    if mode == "none":
        assert maps == {}
        return
    assert list(maps) == [0, 1, 2, 3]
    expected = model.eval().attention.attention_maps(model.fpn(model.forward_features(x)))
    for i, level in maps.items():
        assert isinstance(level, CBAMMaps if mode == "cbam" else TokenMaps)
        for got, wanted in zip(level, expected[i]):
            assert torch.equal(got, wanted) if isinstance(got, torch.Tensor) else got == wanted


def test_a_cbam_alone_says_what_it_multiplies_with():
    torch.manual_seed(0)
    cbam, x = CBAM(16), torch.randn(1, 16, 5, 4)
    channel, spatial = cbam.attention_maps(x)
    torch.testing.assert_close(x * channel[..., None, None] * spatial, cbam(x))


@pytest.mark.parametrize("name", ["vit_tiny", "dinov2_small"])
@pytest.mark.parametrize("size", [(56, 112), (60, 45)])
def test_global_attention_is_timms_own(name, size):
    """Against what timm's unfused path hands to its dropout, prefix tokens and odd sizes included."""
    torch.manual_seed(0)
    backbone = create_backbone(name, image_size=size).eval()
    x = torch.randn(2, 3, *size)
    caught = []
    for block in backbone.body.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, inputs, output: caught.append(output))
    with torch.no_grad():
        backbone.forward_features(x)
        wanted = list(caught)
        found = backbone.global_attention(x)
    assert len(found.weights) == len(wanted) == 12 and found.prefix == 1
    patch = 16 if name == "vit_tiny" else 14
    assert found.grid == tuple(-(-side // patch) for side in size) and found.stride == patch
    for got, expected in zip(found.weights, wanted):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
        assert got.shape[-1] == found.prefix + found.grid[0] * found.grid[1]


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny", "efficientvim_m1", "vim_tiny"])
def test_no_global_attention(name):
    backbone = create_backbone(name, image_size=(64, 64)).eval()
    with torch.no_grad():
        assert backbone.global_attention(torch.zeros(1, 3, 64, 64)) is None
