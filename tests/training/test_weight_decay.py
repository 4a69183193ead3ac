"""What weight decay is for, in every family, and how a resumed run finds its groups again."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from configs.errors import CheckpointError
from models import HybridMedNet, list_backbones
from tests.configs.settings import with_values
from tests.training.toys import make_learner
from training.optim import parameter_groups

VOLUMES = (32, 64, 64)


def meta_network(backbone: str) -> HybridMedNet:
    """With every part that is not the backbone's, without memory for its numbers."""
    size = VOLUMES if backbone.startswith(("swin3d", "convnext3d")) else (224, 224)
    config = with_values(
        {
            "MODEL.backbone": backbone,
            "MODEL.pretrained": False,
            "MODEL.in_channels": 1,
            "MODEL.attention": "cross_scale",
            "MODEL.fpn": True,
            "MODEL.fpn_channels": 16,
            "MODEL.num_heads": 2,
            "MODEL.fusion_channels": 16,
            "DATA.image_size": size,
        }
    )
    with torch.device("meta"):
        return HybridMedNet(config)


@pytest.mark.parametrize("backbone", list_backbones())
def test_in_every_family_the_weights_of_convolutions_and_linear_layers_decay_and_nothing_else(backbone):
    """By the modules' types, where the rule goes by names. Swin V2's and timm's lists leave out some of these, too."""
    model = meta_network(backbone)
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    multiplied = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, layers)}
    multiplied |= {"classifier.classifiers.weight"}  # the linear layers of all classes in one
    listed = {name for name in multiplied if ".cpb_mlp." in name}
    decay, plain = (group["param_names"] for group in parameter_groups(model, 0.1))
    assert set(decay) == multiplied - listed
    assert sorted([*decay, *plain]) == sorted(name for name, _ in model.named_parameters())
    assert (listed != set()) == backbone.startswith("swinv2")


# Kind → a parameter of it, and a backbone that has it: none may decay, whatever its number of axes.
EXEMPT = {
    "a norm's weight": ("resnet18", "backbone.body.bn1.weight"),
    "a bias": ("vit_base", "backbone.body.blocks.0.attn.qkv.bias"),
    "a position embedding": ("vit_base", "backbone.body.pos_embed"),
    "a class token": ("vit_base", "backbone.body.cls_token"),
    "a table of relative positions": ("swin3d_tiny", "backbone.features.0.0.attn.relative_position_bias_table"),
    "decomposed relative positions": ("sam_base", "backbone.body.blocks.0.attn.rel_pos_h"),
    "a logit scale": ("swinv2_tiny", "backbone.body.layers.0.blocks.0.attn.logit_scale"),
    "a layer scale": ("convnext_tiny", "backbone.body.stages.0.blocks.0.gamma"),
    "a layer scale of two axes": ("efficientvim_m1", "backbone.body.stages.0.blocks.0.alpha"),
    "a state space": ("vim_tiny", "backbone.body.layers.0.mixer.A_log"),
    "a skip of a state space": ("vim_tiny", "backbone.body.layers.0.mixer.D"),
    "an embedding of levels": ("resnet18", "attention.level_embeddings"),
}


@pytest.mark.parametrize("kind", EXEMPT)
def test_no_kind_that_is_not_multiplied_by_decays(kind):
    backbone, name = EXEMPT[kind]
    decay, plain = (group["param_names"] for group in parameter_groups(meta_network(backbone), 0.1))
    assert name in plain and name not in decay


def test_norms_and_embeddings_with_matrices_do_not_decay_and_attentions_projection_does():
    parts = {"norm": nn.LayerNorm((4, 4)), "words": nn.Embedding(3, 4), "heads": nn.MultiheadAttention(4, 1)}
    decay, _ = (group["param_names"] for group in parameter_groups(nn.ModuleDict(parts), 0.1))
    assert decay == ["heads.in_proj_weight", "heads.out_proj.weight"]


# ---- groups in a checkpoint


class WithTable(nn.Module):
    """A table of two axes before a linear layer: by the earlier rule it decayed, and was the optimizer's number 0."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, 2))
        self.layer = nn.Linear(3, 2)


def stepped(kind: str, groups: list[dict]) -> torch.optim.Optimizer:
    make = {"AdamW": torch.optim.AdamW, "SGD": partial(torch.optim.SGD, momentum=0.9)}[kind]
    optimizer = make(groups, lr=0.1)
    for parameter in (p for group in groups for p in group["params"]):
        parameter.grad = parameter.detach().clone()
    optimizer.step()
    return optimizer


def state_by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The first moment of each parameter."""
    key = "exp_avg" if isinstance(optimizer, torch.optim.AdamW) else "momentum_buffer"
    return {name: optimizer.state[parameter][key] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("named", [False, True], ids=["as before names were saved", "with names"])
@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_a_run_that_began_with_the_earlier_rule_goes_on_by_it(kind, named, caplog):
    caplog.set_level("INFO")
    torch.manual_seed(0)
    before = WithTable()
    decay, plain = [before.table, before.layer.weight], [before.layer.bias]
    optimizer = stepped(kind, [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}])
    saved = optimizer.state_dict()
    if named:
        saved["param_groups"][0]["param_names"] = ["table", "layer.weight"]
        saved["param_groups"][1]["param_names"] = ["layer.bias"]
    learner = make_learner(WithTable(), kind.lower(), weight_decay=0.3)
    assert learner.optimizer.param_groups[0]["param_names"] == ["layer.weight"]
    learner.load_state_dict({**learner.state_dict(), "optimizer": saved})
    now = [(group["param_names"], group["weight_decay"]) for group in learner.optimizer.param_groups]
    assert now == [(["table", "layer.weight"], 0.3), (["layer.bias"], 0.0)]
    expected, found = state_by_name(before, optimizer), state_by_name(learner.model, learner.optimizer)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert "another rule of weight decay" in caplog.text and "table" in caplog.text


def test_a_run_of_today_says_its_names_and_nothing_of_its_rule(caplog):
    caplog.set_level("INFO")
    first, second = make_learner(WithTable()), make_learner(WithTable())
    content = copy.deepcopy(first.state_dict())
    assert [group["param_names"] for group in content["optimizer"]["param_groups"]] == [
        ["layer.weight"],
        ["table", "layer.bias"],
    ]
    second.load_state_dict(content)
    assert "weight decay" not in caplog.text


FORGED = {
    "names of another network": ["layer.weights"],
    "a name twice": ["table"],
    "numbers as names": [7],
    "more names than parameters": ["layer.weight", "table"],
    "no list": "layer.weight",
}


@pytest.mark.parametrize("names", FORGED.values(), ids=FORGED)
def test_groups_with_other_names_are_refused(names):
    learner = make_learner(WithTable())
    content = copy.deepcopy(learner.state_dict())
    content["optimizer"]["param_groups"][0]["param_names"] = names
    with pytest.raises(CheckpointError, match="optimizes other parameters"):
        learner.load_state_dict(content)
