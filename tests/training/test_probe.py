"""Which candidate a probe takes, by a clock that costs of the test's making move; and that it leaves no trace."""

import copy
import logging
import random
import re

import numpy as np
import pytest
import torch
from torch import nn

from configs.default_config import Config
from configs.errors import ConfigError, ModelError
from tests.training.toys import by_cuda
from training import builder, probe
from training.builder import resolve_precision
from training.precision import Precision
from training.probe import Candidate, choose_fastest, decide, measure, probe_shape
from utils.batch import Inputs
from utils.seed import random_state, seed_everything

CPU = torch.device("cpu")
LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format
FLOAT32, BF16 = Precision("cpu", None), Precision("cpu", torch.bfloat16)
F, FL, B, BL = (Candidate(p, layout) for p in (FLOAT32, BF16) for layout in (CONTIGUOUS, LAST))
SHAPE = (4, 3, 6, 6)


class FakeClock:
    """Seconds that pass only when somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Costly(nn.Module):
    """A small network with all a probe could disturb; an image of it costs what the candidate's entry says.

    costs: seconds per image by candidate; an exception class or function in place of them is raised or called.
    runs: (candidate, images) of all forward passes, copies' included.
    """

    def __init__(self, clock: FakeClock, costs: dict, outputs: int = 1) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.pointwise, self.outputs = nn.Conv2d(4, 4, 1), outputs
        self.tools = _Shared(clock, costs, [])

    def forward(self, x):
        autocast = torch.is_autocast_enabled("cpu")
        last = x.is_contiguous(memory_format=LAST)
        weights_last = self.conv.weight.is_contiguous(memory_format=LAST)
        assert self.training and torch.is_grad_enabled() and last == weights_last
        candidate = Candidate(BF16 if autocast else FLOAT32, LAST if last else CONTIGUOUS)
        self.tools.runs.append((candidate, len(x)))
        cost = self.tools.costs[candidate]
        if callable(cost):
            cost = cost() or 0
        self.tools.clock.now += cost * len(x)
        random.random(), np.random.rand()  # noqa: NPY002 - the probe must put this back too
        y = self.pointwise(self.drop(self.norm(self.conv(x)))).mean((2, 3))
        return y if self.outputs == 1 else (y, y[:, :2])


class WithTable(nn.Module):
    """A network of an image and two columns of a table, that says itself what images alone stand for."""

    takes_inputs = True

    def __init__(self) -> None:
        super().__init__()
        self.image, self.table = nn.Conv2d(3, 4, 3), nn.Linear(2, 4)

    def forward(self, x):
        inputs = x if isinstance(x, Inputs) else Inputs.of_images(x)._replace(table=x.new_zeros(len(x), 2))
        return self.image(inputs.image).mean((2, 3)) + self.table(inputs.table)


class _Shared:
    """What copies of a network have in common with it."""

    def __init__(self, clock, costs, runs) -> None:
        self.clock, self.costs, self.runs = clock, costs, runs

    def __deepcopy__(self, memo):
        return self


def choose(costs: dict, prior: Candidate, outputs: int = 1):
    """(what is chosen, the network)."""
    clock = FakeClock()
    model = Costly(clock, costs, outputs)
    return choose_fastest(model, list(costs), prior, SHAPE, clock), model


# ---- the choice


@pytest.mark.parametrize("fastest", [F, FL, B, BL], ids=lambda one: one.name)
@pytest.mark.parametrize("prior", [F, FL], ids=lambda one: one.name)
def test_the_fastest_is_taken(fastest, prior):
    costs = {one: 0.1 if one == fastest else 0.2 for one in (F, FL, B, BL)}
    assert choose(costs, prior)[0] == fastest


@pytest.mark.parametrize(("gain", "expected"), [(0.049, FL), (0.051, F)])
def test_the_prior_is_left_for_a_gain_only(gain, expected):
    assert choose({F: 0.1 * (1 - gain), FL: 0.1}, FL)[0] == expected


@pytest.mark.parametrize(
    ("seconds", "prior", "expected"),
    [
        ({F: 1.0, B: 0.97}, F, F),
        ({F: 0.99, B: 1.0}, B, F),  # less than the margin, but float32 is never left for what is slower
        ({F: 1.0, B: 1.0}, B, B),
        ({F: 1.1, B: 1.0, BL: 0.97}, B, B),
        ({FL: 0.98, B: 1.0, BL: 0.97}, B, BL),
        ({B: 1.0, BL: 2.0}, F, B),  # the prior could not be timed
    ],
)
def test_decisions(seconds, prior, expected):
    assert decide(seconds, prior) == expected


def test_random_times_never_end_slower_than_float32_or_the_prior():
    generator = np.random.default_rng(0)
    for _ in range(300):
        seconds = dict(zip((F, FL, B, BL), 1 + 0.1 * generator.random(4)))
        for prior in seconds:
            taken = decide(seconds, prior)
            float32 = min(seconds[F], seconds[FL])
            assert seconds[taken] <= seconds[prior]
            assert taken.precision == FLOAT32 or seconds[taken] <= float32
            assert taken == prior or seconds[taken] == min(seconds.values())


def test_outliers_do_not_decide():
    times = iter([9, 0.1, 1, 0.1, 0.1, 1])  # the first one does not count
    assert choose({F: 0.1, FL: lambda: next(times) / 4}, F)[0] == FL


def test_a_hierarchical_network_can_be_probed():
    assert choose({F: 0.1, FL: 0.2}, FL, outputs=2)[0] == F


def test_one_candidate_is_not_timed():
    chosen, model = choose({BL: 0.1}, F)
    assert chosen == BL and model.tools.runs == []


def test_what_was_measured_is_logged(caplog):
    with caplog.at_level(logging.INFO):
        choose({F: 0.052, FL: 0.041}, F)
    (line,) = caplog.messages
    assert line.startswith("probe: float32 channels_last 41 ms, float32 52 ms per image (steps of 4, 5 each, ")
    assert line.endswith("): float32 channels_last")


# ---- how long it takes


def test_candidates_take_turns_after_one_that_does_not_count():
    _, model = choose({F: 0.01, FL: 0.02}, F)
    assert model.tools.runs == [(F, 1), (FL, 1), *[(F, 4), (FL, 4)] * probe.ROUNDS]


@pytest.mark.parametrize("cost", [1e-4, 0.05, 0.1, 0.4, 0.9, 2.0, 30.0])
def test_a_probe_keeps_to_its_seconds(cost):
    """Or to the two rounds of single images without which nothing is known."""
    clock = FakeClock()
    model = Costly(clock, {F: cost, FL: cost, B: cost})
    measured = measure(model, [F, FL, B], SHAPE, clock)
    assert set(measured.medians) == {F, FL, B} and measured.rounds >= 1
    assert clock.now <= max(probe.SECONDS + 3 * cost, 2 * 3 * cost) + 1e-9
    assert measured.seconds == pytest.approx(clock.now)
    assert model.tools.runs[-1][1] == measured.images
    assert measured.medians[F] == pytest.approx(cost * measured.images)


@pytest.mark.parametrize(
    ("device", "image", "expected"),
    [
        (CPU, (224, 224), (4, 3, 224, 224)),
        (CPU, (32, 64, 64), (1, 3, 32, 64, 64)),
        (torch.device("cuda"), (224, 224), (32, 3, 224, 224)),
    ],
)
def test_images_are_of_the_real_size(device, image, expected):
    assert probe_shape(device, 32, 3, image) == expected
    assert probe_shape(device, 2, 1, image)[:2] == (min(2, expected[0]), 1)


# ---- no trace is left


def state_of(model: nn.Module) -> dict:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        name: (id(x), x.data_ptr(), x.stride(), x.detach().clone(), x.grad, x.requires_grad)
        for name, x in tensors.items()
    } | {f"{name}.training": module.training for name, module in model.named_modules()}


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("layout", [CONTIGUOUS, LAST])
@pytest.mark.parametrize("failing", [False, True])
def test_model_and_random_state_stay_as_they_were(layout, failing):
    seed_everything(3)
    clock = FakeClock()
    model = Costly(clock, {F: 0.1, FL: by_cuda if failing else 0.2, B: 0.3, BL: 0.4}).to(memory_format=layout)
    model.norm.eval()
    before, numbers = state_of(model), copy.deepcopy(random_state())
    choose_fastest(model, [F, FL, B, BL], F, SHAPE, clock)
    assert len(model.tools.runs) > 8
    after = state_of(model)
    assert before.keys() == after.keys() and all(same(before[key], after[key]) for key in before)
    again = random_state()
    assert numbers.keys() == again.keys() and all(same(numbers[key], again[key]) for key in numbers)


def test_random_state_is_put_back_after_an_error_too():
    def stop():
        raise ModelError("no weights")

    model = Costly(FakeClock(), {F: stop, FL: 0.1})
    before = random_state()["cpu"]
    with pytest.raises(ModelError, match="no weights"):
        choose_fastest(model, [F, FL], F, SHAPE)
    assert torch.equal(before, random_state()["cpu"])


# ---- what fails


def broken():
    raise RuntimeError("no kernel\nfor this")


@pytest.mark.parametrize(("failure", "message"), [(by_cuda, "out of memory .CUDA"), (broken, "no kernel for this")])
def test_what_fails_is_left_out_with_a_warning(failure, message, caplog):
    chosen, model = choose({F: failure, FL: 0.3, B: 0.2}, F)
    assert chosen == B
    assert [one for one, _ in model.tools.runs].count(F) == 1
    (warning,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert "probe: float32 is left out: " in warning.getMessage()
    assert re.search(message, warning.getMessage())


def test_a_failure_after_the_first_round_counts_too():
    later = iter([0.01, 0.01])
    chosen, _ = choose({F: lambda: next(later, None) or broken(), FL: 0.3}, F)
    assert chosen == FL


def test_where_nothing_could_be_timed_the_prior_is_taken(caplog):
    chosen, _ = choose({F: by_cuda, FL: broken, B: by_cuda}, FL)
    assert chosen == FL
    assert "probe: nothing could be timed, so float32 channels_last is taken untried" in caplog.messages


def test_a_network_that_cannot_be_copied_is_no_obstacle(caplog):
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    model.kept = model[0].weight * 1  # not a leaf: deepcopy refuses
    assert choose_fastest(model, [F, FL], FL, SHAPE) == FL
    assert "nothing could be timed" in caplog.text and "left out" in caplog.text


# ---- settings


def resolved(*overrides: str) -> Config:
    return Config.from_overrides(["TRAIN.device=cpu", "DATA.image_size=6", *overrides]).resolve(tuple("abcd"))


@pytest.fixture
def with_bf16(monkeypatch):
    """A CPU that says it has bf16."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)


@pytest.fixture
def without_bf16(monkeypatch):
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)


def settled(costs: dict, *overrides: str, prefers: bool = True, checkpoint=None):
    """(TRAIN.mixed_precision, TRAIN.channels_last, candidates that were timed)."""
    clock = FakeClock()
    model = Costly(clock, costs)
    config = resolved(*overrides)
    before = config.model_dump()
    train = resolve_precision(config, model, prefers, checkpoint, clock).TRAIN
    assert config.model_dump() == before, "the given config is to stay"
    return train.mixed_precision, train.channels_last, {one for one, _ in model.tools.runs}


ALL = {F: 0.4, FL: 0.3, B: 0.2, BL: 0.1}


@pytest.mark.parametrize(
    ("overrides", "timed", "expected"),
    [
        (("TRAIN.mixed_precision=auto",), {F, FL, B, BL}, ("bf16", True)),
        (("TRAIN.mixed_precision=auto", "TRAIN.channels_last=false"), {F, B}, ("bf16", False)),
        (("TRAIN.mixed_precision=auto", "TRAIN.channels_last=true"), {FL, BL}, ("bf16", True)),
        ((), {B, BL}, (True, True)),
        (("TRAIN.mixed_precision=true",), {B, BL}, (True, True)),
        (("TRAIN.mixed_precision=bf16",), {B, BL}, ("bf16", True)),
        (("TRAIN.mixed_precision=false",), {F, FL}, (False, True)),
        (("TRAIN.mixed_precision=false", "TRAIN.channels_last=false"), set(), (False, False)),
        (("TRAIN.mixed_precision=true", "TRAIN.channels_last=true"), set(), (True, True)),
    ],
)
def test_only_what_the_settings_leave_open_is_timed(with_bf16, overrides, timed, expected):
    assert settled(ALL, *overrides) == (*expected, timed)


def test_without_bf16_only_layouts_are_open(without_bf16):
    assert settled(ALL, "TRAIN.mixed_precision=auto") == (False, True, {F, FL})
    assert settled(ALL, "TRAIN.mixed_precision=auto", "TRAIN.channels_last=false") == (False, False, set())


@pytest.mark.parametrize("prefers", [False, True])
def test_the_prior_on_a_cpu_is_float32_as_the_backbone_prefers(with_bf16, prefers):
    equal = dict.fromkeys(ALL, 0.1)
    assert settled(equal, "TRAIN.mixed_precision=auto", prefers=prefers)[:2] == (False, prefers)
    slow = {**equal, B: 0.2, BL: 0.2}
    assert settled(slow, "TRAIN.mixed_precision=auto", prefers=prefers)[:2] == (False, prefers)


@pytest.mark.parametrize("prefers", [False, True])
def test_the_prior_keeps_a_precision_that_is_set(with_bf16, prefers):
    """A gain of 2 % is too little to leave the backbone's layout."""
    slightly_faster = {**ALL, B: 0.1 if prefers else 0.102, BL: 0.102 if prefers else 0.1}
    assert settled(slightly_faster, "TRAIN.mixed_precision=bf16", prefers=prefers)[:2] == ("bf16", prefers)


def test_volumes_are_contiguous(with_bf16, monkeypatch):
    asked = []

    def note(model, candidates, prior, shape, clock):
        asked.append((candidates, prior, shape))
        return B

    monkeypatch.setattr(builder, "choose_fastest", note)
    config = resolved("DATA.image_size=[4, 6, 6]", "TRAIN.mixed_precision=auto", "MODEL.backbone=swin3d_tiny")
    train = resolve_precision(config, nn.Conv3d(1, 1, 1), True).TRAIN
    assert (train.mixed_precision, train.channels_last) == ("bf16", False)
    ((candidates, prior, shape),) = asked
    assert set(candidates) == {F, B} and prior == F and shape == (1, 3, 4, 6, 6)


def test_a_settled_config_is_written_and_read_the_same(with_bf16, tmp_path):
    clock = FakeClock()
    config = resolve_precision(resolved("TRAIN.mixed_precision=auto"), Costly(clock, ALL), False, None, clock)
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    again = Config.from_yaml(tmp_path / "config.yaml")
    assert again.model_dump() == config.model_dump()
    assert (again.TRAIN.mixed_precision, again.TRAIN.channels_last) == ("bf16", True)


# ---- resumed runs


def begun(mixed_precision, channels_last) -> dict:
    return {"config": {"TRAIN": {"mixed_precision": mixed_precision, "channels_last": channels_last}}}


AUTO = ("TRAIN.mixed_precision=auto",)


@pytest.mark.parametrize(
    ("overrides", "checkpoint", "expected"),
    [
        (AUTO, begun("bf16", False), ("bf16", False)),
        (AUTO, begun(False, True), (False, True)),
        (AUTO, begun("auto", "auto"), ("bf16", True)),  # by a release that did not probe: the prior
        (AUTO, begun(True, "auto"), ("bf16", True)),
        ((*AUTO, "TRAIN.channels_last=false"), begun("bf16", True), ("bf16", False)),
        (("TRAIN.mixed_precision=false",), begun("bf16", False), (False, False)),
        (AUTO, {}, ("bf16", True)),
        (AUTO, {"config": {"TRAIN": 3}}, ("bf16", True)),
        (AUTO, begun([1], {"a": 2}), ("bf16", True)),
    ],
)
def test_a_resumed_run_goes_on_as_it_began_without_a_probe(with_bf16, overrides, checkpoint, expected):
    assert settled({}, *overrides, checkpoint=checkpoint) == (*expected, set())


def test_a_run_resumed_where_its_format_is_missing_goes_on_in_float32(without_bf16, caplog):
    assert settled({}, *AUTO, checkpoint=begun("bf16", True))[:2] == (False, True)
    assert "'bf16', which this cpu does not compute: float32" in caplog.text
    with pytest.raises(ConfigError, match="no bf16 arithmetic"):
        settled({}, "TRAIN.mixed_precision=bf16", checkpoint=begun("bf16", True))


def test_a_network_says_itself_what_images_without_a_table_stand_for():
    """The probe knows the shape of an image, and of nothing else that a network may take."""
    measured = measure(WithTable(), [F, FL], SHAPE)
    assert set(measured.medians) == {F, FL}
