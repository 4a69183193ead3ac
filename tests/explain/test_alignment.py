"""Where cells are centred: what is measured against what the padding of each family's convolutions says."""

import pytest
import torch
from torch import nn

from explain.alignment import first_centre
from explain.cam import class_activation_maps
from explain.network import explaining
from models import create_backbone
from tests.explain.networks import images, network

# Centres of the first cells in pixels: patches are centred, paddings of (k − 1) / 2 begin at pixel 0, TensorFlow's
# padding of even sizes, which lies behind only, at stride − 1; DenseNet's pools average cells in pairs.
THEORY = {
    "convnext_tiny": [1.5, 3.5, 7.5, 15.5],
    "swin_tiny": [1.5, 3.5, 7.5, 15.5],
    "resnet18": [0, 0, 0, 0],
    "regnety_004": [0, 0, 0, 0],
    "densenet121": [0, 2, 6, 14],
    "tf_efficientnet_lite0": [3, 7, 15, 31],
}


QUICK = ("resnet18", "tf_efficientnet_lite0")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in THEORY])
def test_centres_are_where_the_architecture_puts_them(name):
    torch.manual_seed(0)
    backbone = create_backbone(name, image_size=(64, 64)).eval()
    with explaining(backbone):
        found = [first_centre(backbone, level, torch.zeros(1, 3, 64, 64)) for level in range(4)]
    print(name, [f"{value:.1f}" for value in found])
    for value, expected, stride in zip(found, THEORY[name], backbone.feature_strides):
        assert abs(value - expected) < 0.22 * stride


def test_a_spot_is_found_where_it_is():
    """A network that answers to one bright spot: at stride 32, cells that tiled the image would be 15 pixels off."""
    model = network(size=(224, 224))
    for module in model.backbone.modules():  # a sum of all paths, positive everywhere
        if isinstance(module, nn.Conv2d):
            module.weight.data.abs_()
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()
            module.bias.data.zero_()
    for y, x in [(64, 64), (128, 96), (96, 160)]:
        image = torch.zeros(1, 3, 224, 224)
        image[..., y - 2 : y + 3, x - 2 : x + 3] = 1
        with explaining(model):
            a = model.backbone.forward_features(image)[3].sum(1)[0]
            first = first_centre(model.backbone, 3, image)
        peak = divmod(int(a.argmax()), a.shape[1])
        assert abs(first + 32 * peak[0] - y) < 12 and abs(first + 32 * peak[1] - x) < 12


def test_measured_once_and_nothing_of_it_stays():
    model, x = network(), images(1, 3, 64, 64)
    seen = []
    model.backbone.register_forward_pre_hook(lambda *_: seen.append(1))
    forward = model.backbone.forward_features
    model.backbone.forward_features = lambda x: seen.append(x.shape) or forward(x)
    class_activation_maps(model, x, [0], "grad_cam", 2)
    assert [tuple(shape) for shape in seen] == [(1, 3, 64, 64), (1, 3, 144, 144)]
    class_activation_maps(model, x, [1], "layer_cam", 2)
    assert len(seen) == 3 and all(p.grad is None for p in model.parameters())
