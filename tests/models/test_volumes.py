"""From a volume to logits: a 3-D backbone, neck, attention, fusion and head together."""

import pytest
import torch
from torch import Tensor, nn

from models.attention import ATTENTION_MODES, create_attention
from models.backbones.swin3d import SWIN3D_VARIANTS, Swin3DSpec, SwinTransformer3D
from models.fpn import FeaturePyramidNetwork
from models.fusion import DynamicFusion
from models.heads import MultiLabelHead
from utils.blocks import State, run_plainly


class VolumeNetwork(nn.Module):
    """HybridMedNet's order of parts without its settings."""

    def __init__(self, attention: str, norm: str, fpn: bool) -> None:
        super().__init__()
        self.backbone = SwinTransformer3D("micro", in_channels=1)
        channels = self.backbone.feature_channels
        self.fpn = FeaturePyramidNetwork(channels, 24, spatial_dims=3) if fpn else None
        channels = [24] * 4 if fpn else channels
        self.attention = create_attention(attention, channels, 4, spatial_dims=3)
        self.fusion = DynamicFusion(channels, 64, 2, spatial_dims=3, norm=norm)
        self.head = MultiLabelHead(64, 3, dropout=0.0, norm=norm)

    def steps(self, x: Tensor) -> list:
        neck = self.fpn.steps() if self.fpn else []
        return [*self.backbone.blocks(x), *neck, *self.attention.steps(), *self.fusion.steps()]

    def forward(self, x: Tensor) -> Tensor:
        features = self.backbone.forward_features(x)
        features = self.fpn(features) if self.fpn else features
        return self.head(self.fusion(self.attention(features)))


@pytest.fixture(autouse=True)
def micro(monkeypatch):
    monkeypatch.setitem(SWIN3D_VARIANTS, "micro", Swin3DSpec(16, (1, 1, 1, 1), (1, 2, 2, 4), ""))


@pytest.mark.parametrize("batch, size", [(1, (36, 32, 40)), (2, (20, 33, 47)), (3, (4, 64, 64))], ids=str)
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("attention", ATTENTION_MODES)
def test_a_step_reaches_every_parameter(attention, norm, batch, size):
    torch.manual_seed(0)
    network = VolumeNetwork(attention, norm, fpn=attention in ("none", "cbam")).train()
    with torch.random.fork_rng():
        logits = network(torch.randn(batch, 1, *size))
    assert logits.shape == (batch, 3)
    logits.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # A single hidden unit of CBAM may be closed for every volume of so small a batch.
        assert parameter.grad.abs().sum() > 0 or "channel_attention" in name, name


@pytest.mark.parametrize("attention", ATTENTION_MODES)
def test_all_steps_in_a_row_are_the_network(attention):
    torch.manual_seed(0)
    network, x = VolumeNetwork(attention, "group", fpn=True), torch.randn(2, 1, 32, 24, 16)
    fused = run_plainly(network.steps(x), State(x)).current()
    assert torch.equal(network.head(fused), network(x))


def test_a_network_with_group_norm_learns_from_single_volumes():
    """Batches of one, which batch statistics cannot serve: bright or dark centres are told apart."""
    torch.manual_seed(0)
    network = VolumeNetwork("multi_scale", "group", fpn=False).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    losses = []
    for step in range(60):
        x = torch.randn(1, 1, 16, 16, 16) * 0.2
        x[..., 4:12, 4:12, 4:12] += 1.0 if step % 2 else -1.0
        loss = nn.functional.binary_cross_entropy_with_logits(network(x), torch.full((1, 3), float(step % 2)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-6:]) / 6 < 0.2 < 0.5 < sum(losses[:4]) / 4
