"""The search over cuts against all of them, on small traces with shared storages."""

import itertools
import random

import pytest

from configs.errors import ModelError
from utils.gradient_checkpointing.plan import SLACK, Trace, choose_plan


def random_trace(seed: int, count: int = 7) -> Trace:
    """Blocks that save some of their own storages and their input; a few states stay until the end, as levels do."""
    draw, key = random.Random(seed), itertools.count()
    states, saved, levels = [{}], [], {}
    for _ in range(count):
        x = {next(key): draw.randint(1, 40)}
        inside = {next(key): draw.randint(1, 60) for _ in range(draw.randint(0, 3))}
        saved.append(inside | {k: v for k, v in states[-1].items() if draw.random() < 0.7})
        if draw.random() < 0.4:
            levels |= x
        states.append(levels | x)
    return Trace(
        tuple(str(i) for i in range(count)), tuple(saved), tuple(states), tuple(draw.randint(1, 9) for _ in saved)
    )


def peak_of(trace: Trace, cuts: tuple[int, ...]) -> int:
    """Written anew from the definition: what is held while each run is recomputed or, the last, still there."""
    peak, held = 0, {}
    for first, end in itertools.pairwise([*cuts, len(trace)]):
        held = held | trace.states[first]
        inside = {k: v for saved in trace.saved[first:end] for k, v in saved.items()}
        peak = max(peak, sum((held | inside).values()))
    return peak


def all_cuts(count: int, limit: int):
    """Every choice of cuts whose last run begins at `limit` at the latest."""
    for number in range(count):
        for rest in itertools.combinations(range(1, count), number):
            if not rest or rest[-1] <= limit:
                yield (0, *rest)


@pytest.mark.parametrize("seed", range(40))
def test_no_cuts_have_a_lower_peak(seed):
    trace = random_trace(seed)
    for segments in (*range(1, 8), None):
        plan = choose_plan(trace, segments)
        choices = [cuts for cuts in all_cuts(7, 6) if segments in (None, len(cuts))]
        least = min(peak_of(trace, cuts) for cuts in choices)
        assert plan.peak_bytes == peak_of(trace, plan.cuts)
        assert least <= plan.peak_bytes <= least * (1 + SLACK) + 1
        assert segments in (None, plan.segments) and plan.plain_bytes == peak_of(trace, (0,))
        assert plan.recompute == pytest.approx(sum(trace.flops[: plan.cuts[-1]]) / sum(trace.flops))


@pytest.mark.parametrize("seed", range(20))
def test_a_budget_takes_what_recomputes_least(seed):
    trace = random_trace(seed)
    peaks = {cuts: peak_of(trace, cuts) for cuts in all_cuts(7, 6)}
    for budget in sorted({*peaks.values()}):
        plan = choose_plan(trace, budget_bytes=budget)
        assert plan.peak_bytes <= budget
        assert plan.cuts[-1] == min(cuts[-1] for cuts, peak in peaks.items() if peak <= budget)
    least = min(peaks.values())
    with pytest.raises(ModelError, match="cannot be met; the smallest that can"):
        choose_plan(trace, budget_bytes=least - 1)


def test_the_smallest_budget_that_the_error_names_works():
    big = random_trace(3)
    trace = Trace(
        big.names,
        tuple({k: v * 10**7 for k, v in saved.items()} for saved in big.saved),
        tuple({k: v * 10**7 for k, v in state.items()} for state in big.states),
        big.flops,
    )
    with pytest.raises(ModelError) as caught:
        choose_plan(trace, budget_bytes=1)
    named = float(str(caught.value).split("the smallest that can is ")[1].split(" GB")[0])
    assert choose_plan(trace, budget_bytes=named * 1e9).peak_bytes <= named * 1e9
    with pytest.raises(ModelError):
        choose_plan(trace, budget_bytes=named * 1e9 * 0.98)


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
def test_a_fraction_bounds_what_is_recomputed(fraction):
    trace = random_trace(5)
    plan = choose_plan(trace, fraction=fraction)
    assert 0 < plan.cuts[-1] <= round(7 * fraction)
    least = min(peak_of(trace, cuts) for cuts in all_cuts(7, round(7 * fraction)))
    assert least <= plan.peak_bytes <= least * (1 + SLACK) + 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"segments": 8}, "8 segments asked for, but there are 7 blocks.*1 to 7, or auto"),
        ({"segments": 0}, "0 segments"),
        ({"fraction": 0.0}, "fraction is 0"),
        ({"fraction": 1.5}, "fraction is 1.5"),
        ({"segments": 6, "fraction": 0.3}, "lower segments or raise fraction"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ModelError, match=message):
        choose_plan(random_trace(0), **options)


def test_one_segment_recomputes_nothing():
    plan = choose_plan(random_trace(1), segments=1)
    assert plan.runs == [] and plan.recompute == 0 and plan.peak_bytes == plan.plain_bytes
