"""Every backbone, and every attention, as a file: the numbers are the network's under 1e-4.

ONNX files take half a minute to minutes each, so that all but the parts are slow tests.
"""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from configs.default_config import Config
from deployment.exported_network import ExportedNetwork
from deployment.formats import Request, export_file
from deployment.onnx_format import export_onnx, open_onnx
from deployment.torch_formats import run_module, traced_program
from deployment.verification import BOUNDS, compare, random_images
from models import HybridMedNet, backbone_dims, list_backbones
from models.attention import ATTENTION_MODES, create_attention
from models.backbones.families import smallest_of_each_family
from models.backbones.selective_scan import selective_scan
from models.fusion import DynamicFusion
from models.heads import MultiLabelHead
from models.layers import pooled_tokens

CHANNELS = (8, 16, 16, 24)
IMAGES_ONLY = [name for name in smallest_of_each_family(list_backbones()) if backbone_dims(name) == 2]


def image_shape(backbone: str) -> tuple[int, ...]:
    return (3, 64, 64) if backbone_dims(backbone) == 2 else (3, 32, 32, 32)


def build(backbone: str, attention: str) -> HybridMedNet:
    """Random weights; those that begin at zero are woken, so that every branch counts."""
    config = Config()
    config.MODEL["backbone"], config.MODEL["attention"], config.MODEL["pretrained"] = backbone, attention, False
    config.MODEL["fusion_channels"] = 32
    config.DATA["image_size"] = image_shape(backbone)[1:]
    torch.manual_seed(0)
    model = HybridMedNet(config)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    settle_statistics(model, image_shape(backbone))
    return model.eval()


def settle_statistics(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Running statistics of a batch: with those of a new network the activations of a deep EfficientNetV2 grow until
    float32 rounding alone changes the answer.
    """
    normalisations = [m for m in model.modules() if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d))]
    if normalisations:
        for one in normalisations:
            one.momentum = None  # the mean of the batches so far, which is of this one alone
        with torch.no_grad():
            model.train()(torch.from_numpy(random_images(shape, 8)))


class Neck(nn.Module):
    """A pyramid made by pooling, then attention, fusion and head as HybridMedNet has them."""

    def __init__(self, attention: str, spatial_dims: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.spatial_dims = spatial_dims
        self.attention = create_attention(attention, CHANNELS, 2, spatial_dims)
        self.fusion = DynamicFusion(CHANNELS, 8, target_level=2, spatial_dims=spatial_dims)
        self.head = MultiLabelHead(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        pool = nn.functional.avg_pool2d if self.spatial_dims == 2 else nn.functional.avg_pool3d
        scales = [torch.linspace(-1, 1, c).reshape(-1, *[1] * self.spatial_dims) for c in CHANNELS]
        levels = [(pool(x, 2**i, ceil_mode=True) if i else x)[:, :1] * scale for i, scale in enumerate(scales)]
        return self.head(self.fusion(self.attention(levels)))


class Necks(nn.Module):
    """All attention modes at once: one file instead of four."""

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        self.necks = nn.ModuleList(Neck(mode, spatial_dims) for mode in ATTENTION_MODES)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(neck(x) for neck in self.necks)


@pytest.mark.parametrize("spatial_dims", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_every_attention_with_fusion_and_head(spatial_dims):
    """Odd sizes, so that maps are padded, pooled unevenly and resized."""
    shape, necks = (3, *(22, 26, 18)[:spatial_dims]), Necks(spatial_dims).eval()
    program = traced_program(necks, shape).module()
    difference = compare(necks, run_module(program), random_images(shape))
    assert difference < BOUNDS["fp32"]


class Scan(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        u, delta, B, C = (x.flatten(2).roll(shift, 1).transpose(1, 2) for shift in range(4))
        A = -torch.arange(1.0, 4).repeat(3, 1)
        return selective_scan(u, delta, A, B, C, torch.ones(3), torch.zeros(3))


class Pool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return pooled_tokens(x, 4)


@pytest.mark.parametrize(
    "module, shape", [(Scan(), (3, 3, 7)), pytest.param(Pool(), (3, 5, 6, 9), marks=pytest.mark.slow)]
)
def test_what_has_a_way_of_its_own_in_exported_graphs(module, shape, tmp_path):
    """The scan over time and the 3-D mean."""
    export_onnx(module, shape, tmp_path / "x.onnx", {})
    difference = compare(module, open_onnx(tmp_path / "x.onnx"), random_images(shape))
    print(f"{type(module).__name__} {shape}: largest |Δ| {difference:.1e}")
    assert difference < 1e-5


def rounding_error(model: nn.Module, images: np.ndarray) -> float:
    """How far the float32 network itself is from its float64 copy: some random networks are ill-conditioned."""
    exact = copy.deepcopy(model).double()

    @torch.inference_mode()
    def run(batch: np.ndarray) -> list[np.ndarray]:
        outputs = exact(torch.from_numpy(batch).double())
        return [y.numpy() for y in (outputs if isinstance(outputs, tuple) else (outputs,))]

    return compare(model, run, images)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch_export", "onnx"])
@pytest.mark.parametrize("name", list_backbones())
def test_every_backbone(name, kind, tmp_path, monkeypatch):
    shape = image_shape(name)
    network, images = ExportedNetwork(build(name, "cross_scale")), random_images(shape, 3)
    own = rounding_error(network.network, images)  # of logits, so four times that of probabilities
    monkeypatch.setitem(BOUNDS, "fp32", max(BOUNDS["fp32"], min(own, 1e-3)))
    difference = export_file(network, kind, tmp_path / "x", Request(shape), images)
    print(f"{name} as {kind}: largest |Δ| {difference:.1e}, rounding alone {own:.1e}")


class AllModes(nn.Module):
    """One backbone under a network of every attention mode: [B, 3, H, W] → four outputs."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.networks = nn.ModuleList(build(backbone, mode) for mode in ATTENTION_MODES)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = self.networks[0].forward_features(x)
        return tuple(network.forward_head(features) for network in self.networks)


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES_ONLY)
def test_every_family_of_images_with_every_attention(name, tmp_path):
    """Logits, as onnxruntime gives them."""
    shape, model = image_shape(name), AllModes(name).eval()
    export_onnx(model, shape, tmp_path / "x.onnx", {}, output_names=ATTENTION_MODES)
    difference = compare(model, open_onnx(tmp_path / "x.onnx"), random_images(shape, 3))
    own = rounding_error(model, random_images(shape, 3))
    print(f"{name} with {', '.join(ATTENTION_MODES)}: largest |Δ| {difference:.1e}, rounding alone {own:.1e}")
    assert difference < max(BOUNDS["fp32"], 3 * own)
