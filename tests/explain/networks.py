"""Small networks for the tests of explanations."""

from types import SimpleNamespace

import timm
import torch
from torch import Tensor, nn

from configs.default_config import Config
from models import HybridMedNet, backbone_dims


def network(backbone: str = "resnet18", size: tuple[int, ...] = (64, 64), classes: int = 4, **model) -> HybridMedNet:
    """In eval mode, with random weights and running statistics that are not their initial values."""
    torch.manual_seed(0)
    config = Config()
    values = {"backbone": backbone, "pretrained": False, "fpn_channels": 32, "fusion_channels": 32}
    for key, value in {**values, "num_classes": classes, "input_size": list(size), **model}.items():
        config.MODEL[key] = value
    config.DATA.image_size = list(size)
    network = HybridMedNet(config)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
    return network.eval()


def size_for(backbone: str) -> tuple[int, ...]:
    return (64, 64) if backbone_dims(backbone) == 2 else (16, 32, 32)


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


class PlainResNet(nn.Module):
    """timm's ResNet-18 with its four stages and the stem's activation as levels, so that other libraries can hook it.

    The first convolution has stride 1 and there is no maxpool: level 0 has the input's size.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = timm.create_model("resnet18", pretrained=False, num_classes=5)
        self.net.conv1.stride = (1, 1)
        # Gradients far above the constants that other implementations add to denominators.
        self.net.fc.weight.data *= 1e5
        self.layers = [self.net.act1, self.net.layer1, self.net.layer2, self.net.layer3, self.net.layer4]
        self.backbone = SimpleNamespace(feature_strides=[1, 1, 2, 4, 8])
        self.fusion = SimpleNamespace(target_level=4)
        self.classifier = nn.Sequential(self.net.global_pool, self.net.fc)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> list[Tensor]:
        levels = [self.net.act1(self.net.bn1(self.net.conv1(x)))]
        for layer in self.layers[1:]:
            levels.append(layer(levels[-1]))
        return levels

    def forward_fused(self, features: list[Tensor]) -> Tensor:
        return features[-1]

    def forward_head(self, features: list[Tensor]) -> Tensor:
        return self.classifier(features[-1])

    def forward_from(self, level: int):
        """The same network whose head goes on from one level, through the stages behind it."""
        return _From(self, level)


class _From(PlainResNet):
    def __init__(self, plain: PlainResNet, level: int) -> None:
        nn.Module.__init__(self)
        self.__dict__.update({k: v for k, v in plain.__dict__.items() if k not in ("_modules",)})
        self._modules = plain._modules
        self.level = level

    def forward_head(self, features: list[Tensor]) -> Tensor:
        x = features[self.level]
        for layer in self.layers[self.level + 1 :]:
            x = layer(x)
        return self.classifier(x)
