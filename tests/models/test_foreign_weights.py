"""MODEL.pretrained=FILE with files of torchvision, timm and CheXNet: the backbone gives the source's features."""

import re
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from configs.default_config import Config
from configs.errors import ModelError
from models import HybridMedNet
from models.backbones import create_backbone

torchvision_models = pytest.importorskip("torchvision").models


@torch.no_grad()
def used(network: nn.Module) -> nn.Module:
    """In evaluation, with norms that are not the ones they begin with, so that each of them counts."""
    for name, tensor in network.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            tensor.normal_(std=0.1)
        elif name.endswith("running_var") or (name.endswith("weight") and tensor.ndim == 1):
            tensor.uniform_(0.8, 1.2)
    return network.eval()


@torch.no_grad()
def outputs_of(network: nn.Module, names: tuple[str, ...], x: Tensor) -> list[Tensor]:
    """What the modules of these names give in the network's own forward pass."""
    found: dict[str, Tensor] = {}
    for name in names:
        module = network.get_submodule(name)
        module.register_forward_hook(lambda _module, _inputs, output, name=name: found.update({name: output.clone()}))
    network(x)
    return [found[name] for name in names]


def assert_features(name: str, path: Path, expected: list[Tensor], x: Tensor) -> None:
    backbone = create_backbone(name, str(path), image_size=tuple(x.shape[2:])).eval()
    with torch.no_grad():
        levels = backbone.forward_features(x)
    assert len(levels) == len(expected) == 4
    for mine, theirs in zip(levels, expected, strict=True):
        assert theirs.std() > 1e-3
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(3)
    return torch.randn(2, 3, 96, 96)


RESNET_LEVELS = ("layer1", "layer2", "layer3", "layer4")


@pytest.mark.parametrize("classes", [1000, 14])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_resnets(name, classes, x, tmp_path):
    source = used(getattr(torchvision_models, name)(num_classes=classes))
    torch.save(source.state_dict(), tmp_path / "w.pth")
    assert_features(name, tmp_path / "w.pth", outputs_of(source, RESNET_LEVELS, x), x)


def test_timm_resnets(x, tmp_path):
    source = used(timm.create_model("resnet50", num_classes=14))
    torch.save({"state_dict": source.state_dict()}, tmp_path / "w.pth")
    assert_features("resnet50", tmp_path / "w.pth", outputs_of(source, RESNET_LEVELS, x), x)


DENSENET_BLOCKS = ("features.denseblock1", "features.denseblock2", "features.denseblock3", "features.norm5")


def densenet_maps(source: nn.Module, x: Tensor) -> list[Tensor]:
    """torchvision's; its last map is rectified in the network's forward, outside its modules."""
    *maps, last = outputs_of(source, DENSENET_BLOCKS, x)
    return [*maps, last.relu()]


def of_torch_0_3(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names with a dot before the number, and norms that did not count their batches."""
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): tensor
        for name, tensor in weights.items()
        if not name.endswith("num_batches_tracked")
    }


def of_chexnet(weights: dict[str, Tensor], prefix: str = "module.densenet121.") -> dict[str, Tensor]:
    """A DataParallel of a module with a densenet121, whose classifier is a Sequential with a sigmoid."""
    return {
        prefix + name.replace("classifier.", "classifier.0."): tensor for name, tensor in of_torch_0_3(weights).items()
    }


DENSENET_FILES = {
    "torchvision": (dict, 1000),
    "torch 0.3": (of_torch_0_3, 1000),
    "CheXNet": (of_chexnet, 14),
    "CheXNet without DataParallel": (lambda weights: of_chexnet(weights, "densenet121."), 14),
    "CheXNet without any prefix": (lambda weights: of_chexnet(weights, ""), 14),
}


@pytest.mark.parametrize(("write", "classes"), DENSENET_FILES.values(), ids=DENSENET_FILES)
def test_densenets_of_torchvision_and_chexnet(write, classes, x, tmp_path):
    source = used(torchvision_models.densenet121(num_classes=classes))
    content = {"epoch": 5, "arch": "DENSE-NET-121", "state_dict": write(source.state_dict()), "best_loss": 0.1}
    torch.save(content, tmp_path / "m.pth.tar", _use_new_zipfile_serialization=False)  # as torch 0.3 wrote
    assert_features("densenet121", tmp_path / "m.pth.tar", densenet_maps(source, x), x)


def test_the_names_are_those_of_the_published_file():
    names = of_chexnet(torchvision_models.densenet121(num_classes=14).state_dict())
    assert "module.densenet121.features.denseblock1.denselayer1.norm.1.weight" in names
    assert "module.densenet121.features.transition1.norm.weight" in names
    assert names["module.densenet121.classifier.0.weight"].shape == (14, 1024)
    assert len(names) == 606


def test_a_chexnet_file_that_lacks_a_tensor_is_refused(tmp_path):
    weights = of_chexnet(torchvision_models.densenet121(num_classes=14).state_dict())
    del weights["module.densenet121.features.denseblock4.denselayer16.norm.2.running_var"]
    torch.save({"state_dict": weights}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="do not fit densenet121"):
        create_backbone("densenet121", str(tmp_path / "w.pth"))


def test_a_whole_network_is_refused_with_the_setting_for_it(tmp_path):
    config = Config()
    config.MODEL.backbone, config.MODEL.pretrained = "resnet18", False
    torch.save(HybridMedNet(config).state_dict(), tmp_path / "w.pth")
    config.MODEL.pretrained = str(tmp_path / "w.pth")
    with pytest.raises(ModelError, match=rf"MODEL\.init_from={tmp_path}/w\.pth"):
        HybridMedNet(config)
