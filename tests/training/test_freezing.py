"""What is frozen does not change by a bit, whatever else is on; what is thawed is trained as any other part."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from configs.default_config import Config
from configs.errors import ConfigError
from models import HybridMedNet
from tests.training.toys import TensorLoader, plain_model
from training.builder import build_learner, build_loop, resolve_precision
from training.freezing import Freezing, frozen_part
from training.losses import TrainingLoss, binary_cross_entropy
from training.resume import resume
from utils.blocks import State, leading_frozen
from utils.torch_private import BatchNorm

SMALL = [
    "MODEL.backbone=timm/test_resnet",
    "MODEL.pretrained=false",
    "MODEL.num_classes=3",
    "MODEL.attention=cbam",
    "MODEL.fusion_channels=16",
    "DATA.image_size=32",
    "DATA.class_names=[a, b, c]",
    "TRAIN.channels_last=false",
    "TRAIN.mixed_precision=false",
    "TRAIN.learning_rate=0.01",
    "TRAIN.weight_decay=0.5",
    "TRAIN.batch_size=4",
    "TRAIN.epochs=3",
]
BACKBONE = "backbone."


def settings(*overrides: str) -> Config:
    return Config.from_overrides([*SMALL, *overrides]).complete()


def network(config: Config, seed: int = 0) -> HybridMedNet:
    torch.manual_seed(seed)
    return HybridMedNet(config)


def batches(count: int = 8) -> TensorLoader:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, 32, 32, generator=generator)
    target = (torch.rand(count, 3, generator=generator) < 0.5).float()
    return TensorLoader(images, target, torch.ones(count, 3, dtype=torch.bool), 4)


def loop_of(config: Config, seed: int = 0):
    learner = build_learner(config, network(config, seed), len(batches()))
    return build_loop(config, learner, TrainingLoss(binary_cross_entropy))


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("others", [[], ["TRAIN.ema_decay=0.9", "TRAIN.quantization_aware=true"]])
def test_a_frozen_backbone_stays_to_the_bit_and_the_rest_learns(kind, others):
    loop = loop_of(settings("TRAIN.freeze=backbone", f"TRAIN.optimizer={kind}", "MODEL.drop_path=0.2", *others))
    before = bits(loop.model)
    loop.train_epoch(batches())
    now = changed(before, bits(loop.model))
    assert not [name for name in now if name.startswith(BACKBONE)]
    rest = {name for name in before if not name.startswith(BACKBONE)}  # statistics among them
    assert rest - now <= {"classifier.feature_fusion.0.bias"}  # a norm takes it away again
    norms = [module for module in loop.model.backbone.modules() if isinstance(module, BatchNorm)]
    assert norms and not any(norm.training for norm in norms)
    if loop.learner.ema is not None:
        shadow = {name: tensor.numpy().tobytes() for name, tensor in loop.learner.ema.shadow.items()}
        assert not [name for name in changed(before, shadow) if name.startswith(BACKBONE)]


def test_it_is_trained_from_the_epoch_named_as_if_the_optimizer_were_new_to_it():
    loop = loop_of(settings("TRAIN.freeze=backbone", "TRAIN.unfreeze_epoch=3"))
    for epoch in range(3):
        before = bits(loop.model)
        loop.train_epoch(batches())
        loop.next_epoch()
        found = [name for name in changed(before, bits(loop.model)) if name.startswith(BACKBONE)]
        assert bool(found) is (epoch == 2)
    assert set(found) == {name for name in before if name.startswith(BACKBONE)}
    states = loop.learner.optimizer.state_dict()
    steps = {name: int(states["state"][i]["step"]) for i, name in enumerate(names_of(states))}
    assert {count for name, count in steps.items() if name.startswith(BACKBONE)} == {2}
    assert {count for name, count in steps.items() if not name.startswith(BACKBONE)} == {6}


def names_of(states) -> list[str]:
    return [name for group in states["param_groups"] for name in group["param_names"]]


def test_the_optimizer_keeps_nothing_for_what_is_frozen():
    loop = loop_of(settings("TRAIN.freeze=backbone"))
    loop.train_epoch(batches())
    states = loop.learner.optimizer.state_dict()
    assert len(states["state"]) == sum(not name.startswith(BACKBONE) for name in names_of(states))


def test_blocks_and_levels_from_the_first_on():
    model = network(settings())
    blocks = model.backbone.blocks(torch.zeros(1, 3, 32, 32))
    for count in (1, 2, len(blocks)):
        expected = {p for one in blocks[:count] for p in one.all_parameters()}
        assert set(frozen_part(model, count).parameters()) == expected
    state, levels = State(torch.zeros(1, 3, 32, 32)), []
    for one in blocks:
        state = one.run(state)
        levels.append(len(state.levels))
    for level in (1, 3):
        count = levels.index(level) + 1
        assert frozen_part(model, f"level_{level}").parameters() == frozen_part(model, count).parameters()


def test_a_linear_probe_trains_the_head_alone():
    loop = loop_of(settings("TRAIN.freeze=linear_probe", "MODEL.init_from=x.pth"))
    before = bits(loop.model)
    loop.train_epoch(batches())
    now = changed(before, bits(loop.model))
    assert now and all(name.startswith("classifier.") for name in now)


def test_layers_that_published_weights_lack_are_never_frozen_with_the_backbone():
    config = settings("MODEL.backbone=timm/test_vit", "DATA.image_size=160", "TRAIN.freeze=backbone")
    model = network(config)
    added = {parameter for layer in model.backbone.new_layers() for parameter in layer.parameters()}
    frozen = set(frozen_part(model, "backbone").parameters())
    assert added and not added & frozen and added | frozen == set(model.backbone.parameters())


def test_backbones_of_each_kind_of_view_are_frozen():
    views = ["MODEL.views.aggregator=mean", "MODEL.views.backbones=separate", "MODEL.view_kinds=[PA, L]"]
    model = network(settings(*views))
    frozen = frozen_part(model, "backbone").parameters()
    assert set(frozen) == {*model.backbone.parameters(), *model.view_backbones.parameters()}


def count_call(calls: dict[str, int], name: str, *_: object) -> None:
    calls[name] = calls.get(name, 0) + 1


@pytest.mark.parametrize("freeze", ["backbone", "level_2"])
def test_checkpointing_does_not_do_frozen_blocks_again_and_changes_nothing(freeze):
    """They are called as often as without; weights after a step are those of the plain one."""
    outcomes = []
    for checkpointing in ("false", "true"):
        config = settings(f"TRAIN.freeze={freeze}", f"MODEL.gradient_checkpointing.enabled={checkpointing}")
        loop = loop_of(config)
        loop.learner.train_mode()
        blocks = loop.model.blocks(torch.zeros(1, 3, 32, 32))
        frozen = leading_frozen(blocks)
        assert frozen >= 3
        calls: dict[str, int] = {}
        for one in blocks[:frozen]:
            for module in one.modules:
                module.register_forward_hook(partial(count_call, calls, one.name))
        before = loop.model.state_dict()["classifier.classifiers.bias"].clone()
        loop.train_epoch(batches(4))
        assert not torch.equal(before, loop.model.state_dict()["classifier.classifiers.bias"])
        outcomes.append((bits(loop.model), calls))
    assert outcomes[0] == outcomes[1] and len(outcomes[0][1]) == frozen


def test_a_plan_for_what_is_frozen_for_good_has_nothing_to_save_there():
    plans = {}
    for freeze in ("none", "backbone"):
        config = settings(f"TRAIN.freeze={freeze}", "MODEL.gradient_checkpointing.enabled=true")
        plans[freeze] = build_learner(config, network(config), 2).model.checkpointing_plan()
    assert plans["backbone"].plain_bytes < plans["none"].plain_bytes / 2


@pytest.mark.parametrize("unfreeze", ["null", "2"])
def test_a_checkpoint_goes_on_with_another_setting_of_freezing_and_rates(unfreeze):
    """What was frozen has no state, what was not has one; groups are cut in other ways."""
    first = settings("TRAIN.freeze=backbone", f"TRAIN.unfreeze_epoch={unfreeze}")
    loop = loop_of(first)
    loop.train_epoch(batches())
    loop.next_epoch()
    content = copy.deepcopy({**loop.learner.state_dict(), "config": first.model_dump(mode="json")})
    content["class_names"] = ["a", "b", "c"]
    second = settings("TRAIN.layer_decay=0.5", "TRAIN.backbone_learning_rate_factor=0.1")
    other = loop_of(second, seed=1)
    resume(other.learner, content, second, 8)
    assert bits(other.model) == bits(loop.model)
    before, after = (one.learner.optimizer.state_dict() for one in (loop, other))
    names = {name: number for number, name in enumerate(names_of(before))}
    assert len(after["param_groups"]) > len(before["param_groups"])
    for number, name in enumerate(names_of(after)):
        assert (number in after["state"]) is (names[name] in before["state"])
        if number in after["state"]:
            assert torch.equal(after["state"][number]["exp_avg"], before["state"][names[name]]["exp_avg"])
    frozen = bits(other.model)
    other.train_epoch(batches())
    assert [name for name in changed(frozen, bits(other.model)) if name.startswith(BACKBONE)]


def test_the_probe_times_what_is_trained(monkeypatch):
    seen = []

    def probe(model, candidates, prior, shape, clock):
        seen.append({name for name, parameter in model.named_parameters() if parameter.requires_grad})
        return prior

    monkeypatch.setattr("training.builder.choose_fastest", probe)
    config = settings("TRAIN.freeze=backbone", "TRAIN.channels_last=auto")
    model = network(config)
    resolve_precision(config, model, True)
    assert seen[0] and not [name for name in seen[0] if name.startswith(BACKBONE)]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_log_says_what_is_trained_at_which_rate():
    config = settings("TRAIN.freeze=backbone", "TRAIN.unfreeze_epoch=2", "TRAIN.backbone_learning_rate_factor=0.1")
    learner = build_learner(config, network(config), 2)
    count = sum(parameter.numel() for parameter in learner.model.backbone.parameters())
    rest = sum(parameter.numel() for parameter in learner.model.parameters()) - count
    assert learner.describe_rates() == [
        f"learning rate 0.01: {rest:,} parameters",
        f"{count:,} parameters of the backbone are frozen until epoch 2",
    ]
    learner.state.epoch = 1
    assert learner.describe_rates() == [
        f"learning rate 0.01: {rest:,} parameters",
        f"learning rate 0.001 (0.1 of 0.01): {count:,} parameters",
    ]


def test_parameters_that_the_caller_froze_stay_so():
    model = network(settings())
    first = next(model.backbone.parameters()).requires_grad_(False)
    freezing = Freezing(frozen_part(model, "backbone"), until=1)
    freezing.apply(0)
    freezing.apply(1)
    assert not first.requires_grad and sum(not p.requires_grad for p in model.parameters()) == 1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["TRAIN.unfreeze_epoch=2"], "nothing is frozen"),
        (["TRAIN.freeze=backbone", "TRAIN.unfreeze_epoch=4"], "after the last of TRAIN.epochs 3"),
        (["TRAIN.freeze=linear_probe"], "MODEL.init_from"),
        (["TRAIN.freeze=backbone", "TRAIN.layer_decay=0.7"], "never trained"),
        (["TRAIN.freeze=backbone", "TRAIN.backbone_learning_rate_factor=0.1"], "never trained"),
        (["TRAIN.freeze=neck"], "one of none, backbone, linear_probe"),
        (["TRAIN.freeze=0"], "TRAIN.freeze"),
        (["TRAIN.unfreeze_epoch=1", "TRAIN.freeze=backbone"], "at least 2"),
        (["TRAIN.layer_decay=1.5"], "at most 1"),
    ],
)
def test_settings_that_contradict_each_other(overrides, words):
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        settings(*overrides)


def test_more_blocks_or_levels_than_there_are_and_networks_without_blocks():
    model = network(settings())
    with pytest.raises(ConfigError, match=r"has \d+ blocks \(stem"):
        frozen_part(model, 99)
    with pytest.raises(ConfigError, match="level_1 to level_4"):
        frozen_part(model, "level_5")
    with pytest.raises(ConfigError, match="Sequential has none"):
        frozen_part(plain_model(), "backbone")
