"""Channels taken out of networks: the least first, the same again from the list, and through every use of a file."""

import copy

import pytest
import torch

from configs.default_config import Config
from configs.errors import CheckpointError, ModelError
from models import HybridMedNet, create_model
from models.channel_pruning import prune_channels, remove_channels
from models.saved_model import load_model
from utils.checkpoint import save_checkpoint

NETWORKS = [("timm/test_resnet", "none"), ("timm/test_convnext", "cross_scale"), ("timm/test_vit", "cbam")]
LARGE = [
    ("resnet18", "auto"),
    ("timm/convnext_atto", "cross_scale"),
    ("swin_tiny", "none"),
    ("mobilenetv3_small", "cbam"),
]


def config_of(backbone: str, attention: str, *overrides: str) -> Config:
    settings = [f"MODEL.backbone={backbone}", f"MODEL.attention={attention}", "MODEL.pretrained=false"]
    settings += ["MODEL.num_classes=3", "MODEL.fusion_channels=16", "DATA.image_size=64", *overrides]
    return Config.from_overrides(settings).resolve(("a", "b", "c"))


def network(backbone: str, attention: str, seed: int = 0) -> HybridMedNet:
    torch.manual_seed(seed)
    return HybridMedNet(config_of(backbone, attention)).eval()


def size(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("backbone", "attention"), [*NETWORKS, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in LARGE)]
)
def test_smaller_and_the_same_again(backbone, attention):
    model = network(backbone, attention)
    head = copy.deepcopy(model.classifier.state_dict())
    before, state = size(model), torch.get_rng_state()
    removed, description = prune_channels(model, 0.5)
    assert torch.equal(torch.get_rng_state(), state)
    print(f"{backbone}, {attention}: {description}, {len(removed)} layers")
    assert size(model) < before and model(X).shape == (2, 3)
    assert all(torch.equal(head[name], now) for name, now in model.classifier.state_dict().items())
    other = network(backbone, attention, seed=5)
    remove_channels(other, removed)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(X), model(X)) and other.removed_channels == model.removed_channels == removed
    model.train()(X).sum().backward()  # it can be trained on
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_what_is_removed_is_the_least():
    """The channels of a layer that are nearly zero go."""
    model = network("timm/test_resnet", "none")
    name = next(n for n, m in model.named_modules() if n.endswith("layer1.0.conv1") or n.endswith("stages.0.0.conv1"))
    layer = model.get_submodule(name)
    small = list(range(0, layer.out_channels, 2))
    with torch.no_grad():
        layer.weight[small] *= 1e-4
    removed, _ = prune_channels(model, 0.5)
    gone = [set(numbers) for layer_name, _, numbers in removed if layer_name == name]
    assert gone == [] or all(numbers <= set(small) for numbers in gone)
    assert gone, "no channel of this layer was taken out"


def test_too_little_is_an_error():
    with pytest.raises(ModelError, match="no layer of this network has channels that can be taken out"):
        prune_channels(network("timm/test_resnet", "none"), 1e-6)


@pytest.mark.parametrize("removed", [[["no.such.layer", True, [0]]], [["backbone", True]], 7, [[1, 2, 3]]])
def test_a_list_of_another_network_is_refused(removed):
    with pytest.raises(CheckpointError, match="removed_channels of this checkpoint are not of this network"):
        remove_channels(network("timm/test_resnet", "none"), removed)


def saved(path, model: HybridMedNet, config: Config):
    described = {"config": config.model_dump(mode="json"), "class_names": ["a", "b", "c"]}
    save_checkpoint({**described, "removed_channels": model.removed_channels, "model": model.state_dict()}, path)
    return path


def test_from_training_to_a_file_and_on(tmp_path):
    """init_from and pruning, a file, read again, resumed, and begun from once more."""
    config = config_of("timm/test_resnet", "none")
    whole = network("timm/test_resnet", "none")
    first = saved(tmp_path / "whole.pth", whole, config)
    pruning = [f"MODEL.init_from={first}", "TRAIN.pruning.method=structured", "TRAIN.pruning.amount=0.5"]
    pruned = create_model(config_of("timm/test_resnet", "none", *pruning)).eval()
    assert size(pruned) < size(whole) and "channels taken out: " in pruned.started_from
    second = saved(tmp_path / "pruned.pth", pruned, config)
    assert torch.equal(load_model(second).model(X), pruned(X))
    resumed = create_model(config, {"removed_channels": pruned.removed_channels})
    assert {n: p.shape for n, p in resumed.named_parameters()} == {n: p.shape for n, p in pruned.named_parameters()}
    again = create_model(config_of("timm/test_resnet", "none", f"MODEL.init_from={second}")).eval()
    assert torch.equal(again(X), pruned(X)) and again.removed_channels == pruned.removed_channels
    twice = create_model(config_of("timm/test_resnet", "none", f"MODEL.init_from={second}", *pruning[1:])).eval()
    assert size(twice) <= size(pruned)
    third = saved(tmp_path / "twice.pth", twice, config)
    assert torch.equal(load_model(third).model(X), twice(X))
