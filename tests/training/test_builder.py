"""From a Config to a TrainingLoop: every setting arrives where it works."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from configs.default_config import Config
from configs.errors import ConfigError
from training.builder import build_learner, build_loop, build_loss
from utils.batch import Logits, Targets

CPU = torch.device("cpu")
LABELS = SimpleNamespace(
    target=np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]], np.float32),
    mask=np.array([[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0]], bool),
)


def resolved(*overrides: str, exclusive: bool = False) -> Config:
    return Config.from_overrides(["TRAIN.device=cpu", *overrides]).resolve(("a", "b", "c"), exclusive)


def trainer_of(*overrides: str, batches: int = 10, model: nn.Module | None = None, **others):
    config = resolved(*overrides)
    learner = build_learner(config, model or nn.Linear(4, 3), batches)
    return build_loop(config, learner, build_loss(config, LABELS, (), CPU), **others)


def loss_value(config: Config, logits, target, mask, groups=()) -> float:
    loss = build_loss(config, LABELS, groups, CPU)
    targets = Targets(target, mask, target[:, :2], mask[:, :2])
    return float(loss.total(loss.sums(Logits.of(logits), targets), loss.counts(targets)))


LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
TARGET = (torch.randn(6, 3, generator=torch.Generator().manual_seed(1)) > 0).float()
MASK = torch.ones(6, 3, dtype=torch.bool)


# ---- losses


@pytest.mark.parametrize(
    ("setting", "weight"),
    [("null", [1, 1, 1]), ("auto", [1 / 3, 3, 1]), ("[2, 3, 4]", [2, 3, 4]), ("[5]", [5])],
)
def test_pos_weight(setting, weight):
    expected = F.binary_cross_entropy_with_logits(LOGITS, TARGET, pos_weight=torch.tensor(weight).float())
    assert loss_value(resolved(f"LOSS.pos_weight={setting}"), LOGITS, TARGET, MASK) == pytest.approx(float(expected))


@pytest.mark.parametrize("kind", ["cross_entropy", "focal"])
@pytest.mark.parametrize(
    ("setting", "weight"), [("null", [1, 1, 1]), ("auto", [2, 2 / 3, 1]), ("[2, 3, 4]", [2, 3, 4])]
)
def test_class_weight(kind, setting, weight, monkeypatch):
    one_hot = np.eye(3, dtype=np.float32)[[0, 1, 1, 1, 2, 2]]
    labels = SimpleNamespace(target=one_hot, mask=np.ones((6, 3), bool))
    monkeypatch.setitem(globals(), "LABELS", labels)
    config = resolved(f"LOSS.class_weight={setting}", f"LOSS.type={kind}", "LOSS.focal_gamma=0", exclusive=True)
    target = torch.from_numpy(one_hot)
    each = F.cross_entropy(LOGITS, target.argmax(1), torch.tensor(weight).float(), reduction="none")
    assert loss_value(config, LOGITS, target, MASK) == pytest.approx(float(each.mean()), rel=1e-6)


def test_class_weight_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="class_weight has 2 values for 3 classes"):
        build_loss(resolved("LOSS.class_weight=[1, 2]", exclusive=True), LABELS, (), CPU)
    with pytest.raises(ConfigError, match=r"class_weight is for exclusive classes .* not for 'multi_label'"):
        resolved("LOSS.class_weight=auto")
    with pytest.raises(ConfigError, match="weights must be positive"):
        resolved("LOSS.class_weight=[1, 0, 2]", exclusive=True)


def test_pos_weight_of_another_number_of_classes_is_refused():
    with pytest.raises(ConfigError, match="pos_weight has 2 values for 3 classes"):
        build_loss(resolved("LOSS.pos_weight=[1, 2]"), LABELS, (), CPU)


def test_parameters_of_focal_and_asymmetric_arrive():
    p = LOGITS.double().sigmoid()
    t = TARGET.double()
    focal = -(t * (1 - p) ** 3 * p.log() + (1 - t) * p**3 * (1 - p).log()).mean()
    config = resolved("LOSS.type=focal", "LOSS.focal_gamma=3")
    assert loss_value(config, LOGITS, TARGET, MASK) == pytest.approx(float(focal), rel=1e-5)
    q = (p - 0.2).clamp(min=0)
    asymmetric = -(t * (1 - p) * p.log() + (1 - t) * q**2 * (1 - q).log()).mean()
    settings = {"gamma_positive": 1, "gamma_negative": 2, "clip": 0.2}
    config = resolved("LOSS.type=asymmetric", *(f"LOSS.asymmetric_{key}={value}" for key, value in settings.items()))
    assert loss_value(config, LOGITS, TARGET, MASK) == pytest.approx(float(asymmetric), rel=1e-5)


def test_exclusive_data_get_a_smoothed_cross_entropy():
    index = torch.tensor([0, 2, 1, 1, 0, 2])
    config = resolved("LOSS.label_smoothing=0.1", exclusive=True)
    expected = F.cross_entropy(LOGITS, index, label_smoothing=0.1)
    value = loss_value(config, LOGITS, torch.eye(3)[index], MASK)
    assert value == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("term", ["fine", "coarse", "consistency"])
def test_weights_of_a_hierarchical_loss_arrive(term):
    groups = [SimpleNamespace(members=(0, 1), negated=False), SimpleNamespace(members=(0, 1), negated=True)]
    zeros = [f"LOSS.{name}_weight={0.7 if name == term else 0}" for name in ("fine", "coarse", "consistency")]
    coarse = LOGITS[:, :2] + 1
    highest = LOGITS[:, :2].sigmoid().amax(1)
    implied = torch.stack([highest, 1 - highest], 1)
    expected = {
        "fine": F.binary_cross_entropy_with_logits(LOGITS, TARGET),
        "coarse": F.binary_cross_entropy_with_logits(coarse, TARGET[:, :2]),
        "consistency": F.mse_loss(coarse.sigmoid(), implied),
    }[term]
    config = resolved("MODEL.hierarchical=true", *zeros)
    assert loss_value(config, (coarse, LOGITS), TARGET, MASK, groups) == pytest.approx(0.7 * float(expected), rel=1e-6)


# ---- optimizer and schedule


def test_optimizers_arrive():
    adamw = trainer_of("TRAIN.learning_rate=0.01", "TRAIN.weight_decay=0.2").learner.optimizer
    assert isinstance(adamw, torch.optim.AdamW) and [g["weight_decay"] for g in adamw.param_groups] == [0.2, 0.0]
    sgd = trainer_of("TRAIN.optimizer=sgd", "TRAIN.momentum=0.8").learner.optimizer
    assert isinstance(sgd, torch.optim.SGD) and {g["momentum"] for g in sgd.param_groups} == {0.8}


@pytest.mark.parametrize(("batches", "window", "steps"), [(10, 1, 10), (10, 4, 3), (9, 3, 3)])
def test_a_schedule_lasts_as_long_as_the_optimizers_steps(batches, window, steps):
    settings = ["TRAIN.epochs=20", f"TRAIN.gradient_accumulation_steps={window}", "TRAIN.min_learning_rate=1e-6"]
    schedule = trainer_of(*settings, "TRAIN.learning_rate=1e-2", batches=batches).schedule
    assert schedule.total_steps == 20 * steps and schedule.warmup_steps == 5 * steps
    assert schedule.rate_at(5 * steps) == 1e-2 and schedule.rate_at(20 * steps) == pytest.approx(1e-6)
    assert schedule.rate_at(20 * steps - 1) > 1e-6


@pytest.mark.parametrize(
    ("overrides", "warmup"),
    [
        (["TRAIN.epochs=10"], 50),
        (["TRAIN.epochs=4"], 4),  # the default of 5 epochs yields to a tenth of the run
        (["TRAIN.epochs=4", "TRAIN.warmup_epochs=3"], 30),
        (["TRAIN.epochs=4", "TRAIN.warmup_epochs=0.25"], 2),
        (["TRAIN.epochs=4", "TRAIN.warmup_epochs=0"], 0),
        (["TRAIN.epochs=4", "TRAIN.lr_scheduler=onecycle"], 50),
    ],
)
def test_warmup(overrides, warmup):
    schedule = trainer_of(*overrides).schedule
    if "onecycle" in overrides[-1]:
        assert schedule.rate_at(0) == pytest.approx(1e-4 / 25)
    else:
        assert schedule.warmup_steps == warmup


@pytest.mark.parametrize("epochs", [2, 4, 20])
def test_a_runs_own_config_file_makes_the_same_schedule_again(epochs, tmp_path):
    """Else a resumed run goes on with other learning rates."""
    config = resolved(f"TRAIN.epochs={epochs}")
    first = build_learner(config, nn.Linear(4, 3), 10).schedule
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    again = Config.from_yaml(tmp_path / "config.yaml").resolve(("a", "b", "c"))
    second = build_learner(again, nn.Linear(4, 3), 10).schedule
    steps = range(10 * epochs)
    assert [second.rate_at(step) for step in steps] == [first.rate_at(step) for step in steps]


def test_plateau_settings_arrive():
    overrides = ["TRAIN.lr_scheduler=plateau", "TRAIN.plateau_patience=2", "TRAIN.plateau_factor=0.1"]
    schedule = trainer_of(*overrides, "TRAIN.warmup_epochs=0", "TRAIN.learning_rate=1.0").schedule
    seen = []
    for _ in range(5):
        schedule.epoch_end(0.5)
        seen.append(schedule.learning_rate)
    assert seen == pytest.approx([1, 1, 0.1, 0.1, 0.01])


# ---- the rest


def test_options_arrive():
    overrides = ["TRAIN.epochs=7", "TRAIN.gradient_accumulation_steps=3", "TRAIN.gradient_clip_norm=null"]
    overrides += [
        "TRAIN.on_oom=stop",
        "CHECKPOINT.save_every_steps=9",
        "TRAIN.early_stopping_patience=4",
        "TRAIN.max_nonfinite_steps=2",
        "LOGGING.print_freq=6",
    ]
    trainer = trainer_of(*overrides, "LOGGING.progress=plain")
    options = trainer.options
    assert options.save_every_steps == 9
    assert not trainer.evaluator.adapt and not trainer.learner.adaptation.allowed
    assert (options.epochs, options.accumulation_steps, trainer.window.clip_norm) == (7, 3, None)
    assert (options.early_stopping_patience, options.max_nonfinite_steps) == (4, 2)
    assert (options.print_freq, options.progress) == (6, "plain")


def test_moving_average_and_precision_arrive():
    assert trainer_of("TRAIN.ema_decay=0").learner.ema is None
    assert trainer_of("TRAIN.ema_decay=0.99").learner.ema.decay == 0.99
    assert trainer_of("TRAIN.mixed_precision=false").learner.precision.dtype is None
    with pytest.raises(ConfigError, match="fp16"):
        trainer_of("TRAIN.mixed_precision=fp16")


@pytest.mark.parametrize(("setting", "expected"), [("auto", False), ("true", True), ("false", False)])
def test_channels_last(setting, expected):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    trainer = trainer_of(f"TRAIN.channels_last={setting}", model=model)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last) is expected
    assert (trainer.window.memory_format == trainer.evaluator.memory_format == torch.channels_last) is expected


def test_a_compiled_model_keeps_its_names():
    model = nn.Linear(4, 3)
    trainer = trainer_of("TRAIN.compile=true", "TRAIN.ema_decay=0.9", model=model)
    forward = trainer.window.forward
    assert forward is not model and isinstance(forward, nn.Module)
    assert trainer.evaluator.forward is forward
    assert set(trainer.learner.state_dict()["model"]) == set(trainer.learner.ema.shadow) == {"weight", "bias"}
    assert {id(p) for p in forward.parameters()} == {id(p) for p in model.parameters()}


def test_the_config_is_left_as_it_is():
    config = resolved("TRAIN.epochs=20", "TRAIN.ema_decay=0.9")
    before = copy.deepcopy(config.model_dump())
    build_loop(config, build_learner(config, nn.Linear(4, 3), 10), build_loss(config, LABELS, (), CPU))
    assert config.model_dump() == before


@pytest.mark.parametrize(("images_per_study", "planned"), [(1.0, 6), (1.4, 9)])
def test_checkpointing_is_planned_for_the_images_of_a_batch_of_studies(images_per_study, planned, monkeypatch):
    from models import HybridMedNet

    network = ["MODEL.backbone=timm/test_resnet", "MODEL.pretrained=false", "MODEL.fusion_channels=16"]
    checkpointing = ["MODEL.gradient_checkpointing.enabled=true", "TRAIN.batch_size=6", "DATA.image_size=32"]
    config = resolved(*network, *checkpointing)
    model, sizes = HybridMedNet(config), []
    plan = model.enable_gradient_checkpointing

    def noted(*arguments, batch_size, **options):
        sizes.append(batch_size)
        return plan(*arguments, batch_size=batch_size, **options)

    monkeypatch.setattr(model, "enable_gradient_checkpointing", noted)
    build_learner(config, model, 10, images_per_study)
    assert sizes == [planned]
