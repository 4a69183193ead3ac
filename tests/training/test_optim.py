"""Parameter groups against timm's, schedules against torch's own and closed forms, steps against hand-written ones."""

import copy
import math

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR, ReduceLROnPlateau, SequentialLR

from training.optim import LearningRateSchedule, create_optimizer, parameter_groups


class Wrapped(nn.Module):
    """As in the project: a timm body that lists its exceptions, inside a model that lists none."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"body": body})
        self.norm = nn.BatchNorm1d(4)
        self.classifier = nn.Linear(4, 3)


def tiny_timm(name: str) -> nn.Module:
    options = {"swin": {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}}
    options["vit"] = {"embed_dim": 12, "depth": 1, "num_heads": 1}
    kind = name.partition("_")[0].rstrip("v2")
    return timm.create_model(name, pretrained=False, num_classes=2, **options.get(kind, {}))


# ---- weight decay


@pytest.mark.parametrize(
    "name",
    [
        "swin_tiny_patch4_window7_224",
        "swinv2_tiny_window8_256",
        "vit_tiny_patch16_224",
        "tf_efficientnet_lite0",
        "resnet18",
    ],
)
def test_groups_are_timms(name):
    body = tiny_timm(name)
    listed = body.no_weight_decay() if hasattr(body, "no_weight_decay") else set()
    expected = {
        id(p) for g in param_groups_weight_decay(body, 0.1, no_weight_decay_list=listed)[1:] for p in g["params"]
    }
    decay, plain = parameter_groups(Wrapped(body), 0.1)
    assert (decay["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    own = {id(p) for p in body.parameters()}
    assert {id(p) for p in decay["params"]} & own == expected
    assert {id(p) for p in plain["params"]} & own == own - expected
    assert len(decay["params"]) + len(plain["params"]) == len(list(Wrapped(body).parameters()))


def test_swins_position_bias_does_not_decay_and_frozen_parameters_are_left_out():
    model = Wrapped(tiny_timm("swin_tiny_patch4_window7_224"))
    model.classifier.weight.requires_grad_(False)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay, plain = ({names[id(p)] for p in group["params"]} for group in parameter_groups(model, 0.1))
    tables = {name for name in names.values() if name.endswith("relative_position_bias_table")}
    assert len(tables) == 4 and tables <= plain
    assert {"norm.weight", "norm.bias", "classifier.bias"} <= plain
    assert "backbone.body.patch_embed.proj.weight" in decay
    assert set(names.values()) - decay - plain == {"classifier.weight"}


def test_a_name_listed_by_one_module_exempts_no_namesake_elsewhere():
    class Picky(nn.Linear):
        def no_weight_decay(self):
            return {"weight"}

    model = nn.Sequential(Picky(2, 2), nn.Linear(2, 2))
    decay, plain = parameter_groups(model, 0.1)
    assert [id(p) for p in decay["params"]] == [id(model[1].weight)]
    assert id(model[0].weight) in {id(p) for p in plain["params"]}


def set_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_steps_are_the_textbooks(kind):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    rate, decay, momentum = 0.05, 0.1, 0.9
    optimizer = create_optimizer(model, kind, rate, decay, momentum)
    state = {p: (p.detach().double().clone(), 0.0, 0.0, decay if p.ndim > 1 else 0.0) for p in model.parameters()}
    for step in range(1, 6):
        set_gradients(model, step)
        optimizer.step()
        for p, (w, m, v, d) in state.items():
            g = p.grad.double()
            if kind == "adamw":
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
                w = w - rate * d * w
                w = w - rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
            else:
                g = g + d * w
                m = momentum * m + g  # v stays unused
                w = w - rate * (g + momentum * m)  # Nesterov
            state[p] = (w, m, v, d)
            torch.testing.assert_close(p.detach().double(), w, rtol=1e-5, atol=1e-6)
    if kind == "sgd":
        assert not create_optimizer(model, kind, rate, decay, 0.0).defaults["nesterov"]
    with pytest.raises(ValueError, match="unknown optimizer 'adam': adamw or sgd"):
        create_optimizer(model, "adam", rate, decay)


# ---- schedules


PEAK = 0.3


def sgd(rate: float = PEAK) -> torch.optim.SGD:
    return torch.optim.SGD(
        [{"params": [nn.Parameter(torch.zeros(1))]}, {"params": [nn.Parameter(torch.zeros(2))]}], rate
    )


def rates(schedule: LearningRateSchedule, steps: int) -> list[float]:
    """What each optimizer step is made with, as its groups have it."""
    seen = []
    for _ in range(steps):
        groups = {group["lr"] for group in schedule.optimizer.param_groups}
        assert groups == {schedule.learning_rate}
        seen.append(groups.pop())
        schedule.step()
    return seen


def torch_rates(scheduler, steps: int) -> list[float]:
    seen = []
    for _ in range(steps):
        seen.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_cosine_is_torchs_after_a_linear_warmup(warmup):
    total, minimum = 40, 0.02
    schedule = LearningRateSchedule(sgd(), "cosine", PEAK, total, warmup, minimum)
    reference = sgd()
    cosine = CosineAnnealingLR(reference, total - warmup, minimum)
    if warmup > 1:
        reference = sgd()
        # torch's ramp reaches its end after total_iters steps, ours at the last step of the warm-up
        ramp = LinearLR(reference, 1 / warmup, 1.0, warmup - 1)
        cosine = CosineAnnealingLR(reference, total - warmup, minimum)
        cosine = SequentialLR(reference, [ramp, cosine], [warmup])
    expected = torch_rates(cosine, total + 1 - (warmup == 1))
    if warmup == 1:
        expected = [PEAK, *expected]
    assert rates(schedule, total + 1) == pytest.approx(expected, rel=1e-9)
    assert rates(schedule, 3) == pytest.approx([minimum] * 3), "beyond the end the rate must not rise again"


@pytest.mark.parametrize("total", [10, 33, 100])
def test_onecycle_is_torchs(total):
    rise = int(0.3 * total)
    # torch puts the peak at pct_start * total_steps - 1 and the end at total_steps - 1
    torchs = OneCycleLR(
        sgd(), PEAK, total_steps=total + 1, pct_start=(rise + 1) / (total + 1), div_factor=25, final_div_factor=400
    )
    expected = torch_rates(torchs, total) + [torchs.get_last_lr()[0]]
    schedule = LearningRateSchedule(sgd(), "onecycle", PEAK, total, warmup_steps=5)
    ours = rates(schedule, total + 1)
    assert ours == pytest.approx(expected, rel=1e-9)
    assert ours[0] == pytest.approx(PEAK / 25) and ours[rise] == PEAK and ours[-1] == pytest.approx(PEAK / 1e4)
    assert rates(schedule, 3) == pytest.approx([PEAK / 1e4] * 3)


@pytest.mark.parametrize("minimum", [0.0, 0.01])
@pytest.mark.parametrize("patience", [1, 2, 3])
def test_plateau_is_torchs(patience, minimum):
    generator = torch.Generator().manual_seed(patience)
    drawn = torch.rand(60, generator=generator) + torch.linspace(0, 0.2, 60)
    scores = [round(score, 1) for score in drawn.tolist()]  # with ties, which are not better
    schedule = LearningRateSchedule(sgd(), "plateau", PEAK, 60, patience=patience, factor=0.5, minimum=minimum)
    reference = sgd()
    # torch cuts when more than `patience` epochs were bad, we cut at that many
    torchs = ReduceLROnPlateau(reference, "max", 0.5, patience - 1, threshold=0, min_lr=minimum, eps=0)
    cuts = set()
    for score in scores:
        schedule.epoch_end(score)
        torchs.step(score)
        expected = [group["lr"] for group in reference.param_groups]
        assert [group["lr"] for group in schedule.optimizer.param_groups] == pytest.approx(expected, rel=1e-12)
        cuts.add(schedule.learning_rate)
    assert len(cuts) > 2


def test_plateau_and_constant_warm_up_linearly():
    for kind in ("plateau", "constant"):
        schedule = LearningRateSchedule(sgd(), kind, PEAK, 10, warmup_steps=4)
        assert rates(schedule, 6) == pytest.approx([PEAK / 4, PEAK / 2, PEAK * 3 / 4, PEAK, PEAK, PEAK])
    constant = LearningRateSchedule(sgd(), "constant", PEAK, 10, patience=1)
    for _ in range(5):
        constant.epoch_end(0.0)
    assert constant.learning_rate == PEAK


@pytest.mark.parametrize("kind", ["cosine", "onecycle", "plateau", "constant"])
@pytest.mark.parametrize("at", [0, 2, 9])
def test_state_round_trip_goes_on_alike(kind, at):
    def make() -> LearningRateSchedule:
        return LearningRateSchedule(sgd(), kind, PEAK, 20, 4, 0.01, patience=2, factor=0.5)

    def go_on(schedule: LearningRateSchedule, first: int) -> list[float]:
        seen = []
        for step in range(first, 20):
            seen += rates(schedule, 1)
            schedule.epoch_end(math.sin(step))
        return seen

    undisturbed = make()
    expected = go_on(undisturbed, 0)
    first, second = make(), make()
    for step in range(at):
        rates(first, 1)
        first.epoch_end(math.sin(step))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert go_on(second, at) == expected[at:]
    assert all(type(value) in (int, float) for value in first.state_dict().values())


def test_unknown_schedule():
    with pytest.raises(ValueError, match=r"unknown schedule 'linear': one of cosine"):
        LearningRateSchedule(sgd(), "linear", PEAK, 10)
