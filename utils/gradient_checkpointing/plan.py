"""Where to cut a list of blocks, so that recomputing the runs between cuts saves the most memory.

Peak bytes of activations saved for the backward pass, for runs that begin at blocks c_1 = 0 < c_2 < … and a last run
that is kept as it is: while run k is recomputed there are the states at c_1 … c_k, which are kept to start from, and
all that run k itself saves; later runs are gone by then. So

    peak = max_k ( Σ_{j ≤ k} new bytes of state c_j  +  bytes saved inside run k )

Only a beginning of the list is recomputed, as early blocks save the most bytes for an operation. The input and the
parameters, which are there anyway, do not count. A storage that two of them hold counts once: a level of the pyramid
that left early stays in the states after it.

Cutting a chain to trade memory for time is from Chen et al. 2016 (arXiv:1604.06174), who cut evenly; here the cuts
are the best ones for the measured bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from configs.errors import ModelError

# Of plans whose peaks differ by no more than this share, the one that recomputes less is taken.
SLACK = 0.01

Storages = dict[int, int]  # key of a storage → its bytes


@dataclass(frozen=True)
class Trace:
    """What one forward pass of a list of blocks holds: keys of storages and their bytes.

    saved[i]: storages that block i saves for the backward pass. states[i]: those of the state before block i; one more
    than there are blocks. flops[i]: floating-point operations of block i's forward pass.
    """

    names: tuple[str, ...]
    saved: tuple[Storages, ...]
    states: tuple[Storages, ...]
    flops: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Plan:
    """Runs of blocks; all but the last are recomputed in the backward pass.

    cuts: the first block of every run; cuts[0] is 0. peak_bytes, plain_bytes: of saved activations with this plan and
    with none. recompute: forward operations done again, as a share of all forward operations.
    """

    blocks: int
    cuts: tuple[int, ...]
    peak_bytes: int
    plain_bytes: int
    recompute: float

    @property
    def segments(self) -> int:
        """How many runs there are, the last one, which is kept, among them."""
        return len(self.cuts)

    @property
    def runs(self) -> list[tuple[int, int]]:
        """[first, end) of every run that is recomputed."""
        return list(pairwise(self.cuts))

    def __str__(self) -> str:
        saved = 1 - self.peak_bytes / self.plain_bytes if self.plain_bytes else 0.0
        return (
            f"{self.blocks} blocks in {self.segments} segments, {self.cuts[-1]} of them recomputed: saved activations "
            f"{self.peak_bytes / 2**20:.0f} MiB instead of {self.plain_bytes / 2**20:.0f} (-{saved:.0%}), "
            f"{self.recompute:.0%} of the forward pass again"
        )


def choose_plan(
    trace: Trace, segments: int | None = None, fraction: float = 1.0, budget_bytes: float | None = None
) -> Plan:
    """The best plan for a trace.

    segments: exactly so many runs, with the least peak; None: any number.
    fraction: at most this share of the blocks is recomputed, from the first on.
    budget_bytes: the plan that recomputes least among those whose peak fits; without it, the one of least peak.
    Raises ModelError for more segments than blocks, and for a budget that no plan meets, naming the least one.
    """
    count = len(trace)
    if segments is not None and not 1 <= segments <= count:
        raise ModelError(
            f"gradient checkpointing: {segments} segments asked for, but there are {count} blocks to cut between: "
            f"segments may be 1 to {count}, or auto"
        )
    if not 0 < fraction <= 1:
        raise ModelError(f"gradient checkpointing: fraction is {fraction}; it must be over 0 and at most 1")
    search = _Search(trace, max(round(fraction * count), 1))
    if segments is not None and segments - 1 > search.limit:
        raise ModelError(
            f"gradient checkpointing: {segments} segments with fraction {fraction:g} need {segments - 1} blocks to "
            f"recompute, but the fraction allows {search.limit} of {count}: lower segments or raise fraction"
        )
    least = search.peak(search.best(segments))
    if budget_bytes is not None:
        if least > budget_bytes:
            raise ModelError(
                f"gradient checkpointing: a budget of {budget_bytes / 1e9:.3f} GB for saved activations cannot be met; "
                f"the smallest that can is {np.ceil(least / 1e6) / 1e3:.3f} GB: raise memory_budget_gb, or lower "
                "TRAIN.batch_size or DATA.image_size"
            )
        return search.plan(search.cheapest(budget_bytes, segments))
    return search.plan(search.cheapest(least * (1 + SLACK), segments))


class _Search:
    """Dynamic programming over cuts; matrices of bytes between any two of them."""

    def __init__(self, trace: Trace, limit: int) -> None:
        self.trace, count = trace, len(trace)
        # The last run begins at `limit` at the latest, and keeps at least one block.
        self.limit = min(limit, count - 1)
        self.inside = np.full((count, count + 1), np.inf)
        self.added = np.full((count, count + 1), np.inf)
        for start in range(count):
            held, seen, total = trace.states[start], set(trace.states[start]), 0
            for end in range(start + 1, count + 1):
                fresh = {key: size for key, size in trace.saved[end - 1].items() if key not in seen}
                seen.update(fresh)
                total += sum(fresh.values())
                self.inside[start, end] = total
                self.added[start, end] = _bytes(trace.states[end], held)
        self.first = _bytes(trace.states[0])

    def best(self, segments: int | None) -> tuple[int, ...]:
        """Cuts of the least peak."""
        low, high = 0.0, self.peak((0,))
        cuts = self._cut(high, segments) if segments is not None else (0,)
        if cuts is None:  # so many runs need more than no checkpointing at all
            high = float(self.first + self.added[np.isfinite(self.added)].sum() + self.inside[0, -1])
            cuts = self._cut(high, segments)
        assert cuts is not None
        high = self.peak(cuts)
        while high - low > max(1e-4 * high, 1):
            middle = (low + high) / 2
            found = self._cut(middle, segments)
            if found is None:
                low = middle
            else:
                cuts, high = found, min(self.peak(found), middle)
        return cuts

    def cheapest(self, budget: float, segments: int | None) -> tuple[int, ...]:
        """Cuts within the budget whose last run begins earliest, so that least is recomputed."""
        if segments is None and self.peak((0,)) <= budget:
            return (0,)
        for tail in range(1, self.limit + 1):
            cuts = self._cut(budget, segments, tail)
            if cuts is not None:
                return cuts
        found = self._cut(budget, segments)
        assert found is not None, "the caller asked for a budget that can be met"
        return found

    def _cut(self, budget: float, segments: int | None, tail: int | None = None) -> tuple[int, ...] | None:
        """Some cuts whose peak is at most `budget`, with the fewest bytes in states; None if there are none.

        tail: where the last run must begin.
        """
        count = len(self.trace)
        tails = [tail] if tail is not None else list(range(self.limit + 1))
        if segments is None:
            held, before = self._grow(budget)
            layers = [(held, before)]
        else:
            layers = self._grow_exactly(budget, segments)
            held = layers[-1][0]
        fits = [t for t in tails if held[t] + self.inside[t, count] <= budget]
        if not fits:
            return None
        return _walk_back(min(fits, key=lambda t: held[t] + self.inside[t, count]), layers)

    def _grow(self, budget: float) -> tuple[np.ndarray, np.ndarray]:
        """held[t]: fewest bytes of states, with a cut at t, over any number of runs before; and the cut before it."""
        held, before = np.full(self.limit + 1, np.inf), np.zeros(self.limit + 1, int)
        held[0] = self.first
        for end in range(1, self.limit + 1):
            grown = np.where(held[:end] + self.inside[:end, end] <= budget, held[:end] + self.added[:end, end], np.inf)
            before[end] = int(grown.argmin())
            held[end] = grown[before[end]]
        return held, before

    def _grow_exactly(self, budget: float, segments: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """The same with exactly k runs before the cut, for k = 0 … segments - 1."""
        size = self.limit + 1
        held = np.full(size, np.inf)
        held[0] = self.first
        layers = [(held, np.zeros(size, int))]
        for _ in range(segments - 1):
            fits = held[:, None] + self.inside[:size, :size] <= budget
            grown = np.where(fits, held[:, None] + self.added[:size, :size], np.inf)
            before = grown.argmin(axis=0)
            held = grown[before, np.arange(size)]
            layers.append((held, before))
        return layers

    def peak(self, cuts: Sequence[int]) -> float:
        """The formula at the top of this file."""
        held, peak = float(self.first), 0.0
        for start, end in pairwise([*cuts, len(self.trace)]):
            peak = max(peak, held + self.inside[start, end])
            held += self.added[start, end]
        return peak

    def plan(self, cuts: tuple[int, ...]) -> Plan:
        flops = self.trace.flops
        return Plan(
            blocks=len(self.trace),
            cuts=cuts,
            peak_bytes=int(self.peak(cuts)),
            plain_bytes=int(self.peak((0,))),
            recompute=sum(flops[: cuts[-1]]) / max(sum(flops), 1),
        )


def _walk_back(tail: int, layers: list[tuple[np.ndarray, np.ndarray]]) -> tuple[int, ...]:
    """Cuts from the last to the first: through the one table of free plans, or table by table of exact ones."""
    cuts, layer = [tail], len(layers) - 1
    while cuts[0] > 0:
        cuts.insert(0, int(layers[layer][1][cuts[0]]))
        layer = max(layer - 1, 0) if len(layers) > 1 else 0
    return tuple(cuts)


def _bytes(storages: Storages, but: Storages | None = None) -> int:
    return sum(size for key, size in storages.items() if not but or key not in but)
