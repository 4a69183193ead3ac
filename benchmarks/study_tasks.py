"""What each fusion and each way to join views can learn: tasks of which the best possible score is known.

python -m benchmarks.study_tasks            # writes docs/benchmarks/study_tasks.{md,json}; some 25 minutes on a core
python -m benchmarks.study_tasks --seeds 1 --no-write

Features are made (benchmarks/study_task_data.py): the page shows what the heads of this program can do with what a
backbone gives them, not what a backbone finds. Every score is on studies that were made with another seed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.pages import Verdict, markdown_table, report, verdict_table
from benchmarks.study_task_data import (
    CHANNELS,
    COLUMNS,
    Network,
    Studies,
    auroc,
    best_possible,
    dropping_tables,
    findings_and_table,
    train,
    two_views,
    without_table,
    without_view,
)
from models.studies import AGGREGATORS, FUSIONS, NUMERIC, StudyMixer
from utils.environment import describe_environment

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "study_tasks.md"
STUDIES, EPOCHS, WIDTH, DROPOUT = 3000, 25, 32, 0.3
VIEW_STUDIES, VIEW_EPOCHS = 4000, 15
ADDED = "logits added"
# Up to here an AUROC of images alone says nothing, so that there is nothing for a withheld table to fall back to.
CHANCE = 0.55
# The least of the scores that the sketches of these strategies had, less 0.02.
WANTED_XOR = {"cross_attention": 0.872, **dict.fromkeys(("concatenate", "gated", "bilinear", "attention"), 0.816)}
WANTED_SIDE = {"cross_attention": 0.778}
WANTED_VIEWS = {"lateral_only": 0.864, "view_matters": 0.863, "both": 0.825}


@dataclass(frozen=True)
class Score:
    """AUROCs of the seeds. withheld: the same weights without the table, or without the lateral view."""

    task: str
    strategy: str
    dropout: float
    aurocs: list[float]
    withheld: list[float]
    best: float

    @property
    def median(self) -> float:
        return statistics.median(self.aurocs)


class AddedLogits(nn.Module):
    """A logit of the image and a logit of the table, added: what a fusion has to be better than."""

    def __init__(self) -> None:
        super().__init__()
        self.image = Network(None, pooled=True)
        self.table = nn.Sequential(nn.Linear(COLUMNS, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, studies: Studies) -> Tensor:
        told = self.table(studies.inputs.table)[:, 0]
        return self.image(studies) + torch.where(studies.inputs.table_mask.any(1), told, 0.0)


def table_network(fusion: str | None) -> nn.Module:
    """None: of the images alone."""
    if fusion == ADDED:
        return AddedLogits()
    mixer = StudyMixer(CHANNELS, fusion=fusion, columns=[NUMERIC] * COLUMNS, table_width=WIDTH) if fusion else None
    return Network(mixer, pooled=True)


def view_network(aggregator: str) -> nn.Module:
    """A small network behind the joined views, so that both signs can be asked for."""
    mixer = StudyMixer(CHANNELS, aggregator=aggregator, view_kinds=2, view_width=WIDTH)
    return Network(mixer, pooled=False, hidden=WIDTH)


def scores(
    task: str,
    strategy: str,
    build: Callable[[], nn.Module],
    make: Callable[[int], Studies],
    test: Studies,
    withheld: Studies,
    epochs: int,
    seeds: int,
    dropout: float = 0.0,
) -> Score:
    """Trained once a seed."""
    found, without = [], []
    for seed in range(seeds):
        torch.manual_seed(seed)
        network = build()
        train(network, make(seed), epochs, seed=seed, disturb=dropping_tables(dropout))
        found.append(auroc(network, test))
        without.append(auroc(network, withheld))
    return Score(task, strategy, dropout, found, without, best_possible(test))


def measure(seeds: int) -> Iterator[Score]:
    """All tasks with all strategies."""
    for task in ("xor", "side"):
        test = findings_and_table(task, 2000, 999)
        for dropout in (0.0, DROPOUT):
            for fusion in (*(() if dropout else (None, ADDED)), *FUSIONS):
                yield scores(
                    task,
                    fusion or "images alone",
                    lambda fusion=fusion: table_network(fusion),  # type: ignore[misc]
                    lambda seed, task=task: findings_and_table(task, STUDIES, seed),  # type: ignore[misc]
                    test,
                    without_table(test),
                    EPOCHS,
                    seeds,
                    dropout,
                )
    for task in WANTED_VIEWS:
        test = two_views(task, 4000, 999, missing=0)
        for aggregator in AGGREGATORS:
            yield scores(
                task,
                aggregator,
                lambda aggregator=aggregator: view_network(aggregator),  # type: ignore[misc]
                lambda seed, task=task: two_views(task, VIEW_STUDIES, seed),  # type: ignore[misc]
                test,
                without_view(test, 1),
                VIEW_EPOCHS,
                seeds,
            )


# ---- page


def verdicts(found: list[Score]) -> list[Verdict]:
    """Each strategy with what was wanted of it; and that a withheld table costs no more than the image alone has."""
    rows: list[Verdict] = []
    alone = {one.task: one.median for one in found if one.strategy == "images alone"}
    for one in found:
        wanted = {"xor": WANTED_XOR, "side": WANTED_SIDE}.get(one.task, {}).get(one.strategy)
        wanted = WANTED_VIEWS.get(one.task, wanted)
        if wanted is not None and not one.dropout:
            rows.append((f"{one.task}, {one.strategy} ≥ {wanted}", f"{one.median:.3f}", one.median >= wanted))
        if one.dropout and alone.get(one.task, 0.0) > CHANCE:
            least, seen = alone[one.task] - 0.02, statistics.median(one.withheld)
            rows.append((f"{one.task}, {one.strategy}, table withheld ≥ {least:.3f}", f"{seen:.3f}", seen >= least))
    return rows


HEADINGS = "task | strategy | table left out in training | AUROC | best possible | withheld"


def cells(one: Score) -> str:
    """A row: the median, and all seeds."""
    dropped = f"{one.dropout:.0%}" if one.task in ("xor", "side") else ""
    return (
        f"{one.task} | {one.strategy} | {dropped} | {one.median:.3f} ({_seeds(one.aurocs)}) | {one.best:.3f} | "
        f"{statistics.median(one.withheld):.3f} ({_seeds(one.withheld)})"
    )


def _seeds(values: list[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def page(found: list[Score]) -> str:
    """The Markdown page."""
    machine = describe_environment("cpu", "fp32")
    return f"""# What each strategy for studies can learn

Written by `python -m benchmarks.study_tasks` on {machine["time"][:10]}, torch {machine["packages"]["torch"]}. Made
features with labels of which a tenth are flipped; {STUDIES:,} studies and {EPOCHS} epochs for tables, {VIEW_STUDIES:,}
and {VIEW_EPOCHS} for views, of which 30 % lack one of theirs in training; width {WIDTH}. AUROC on studies made with
another seed: the median, and every seed.

- xor: the finding counts the other way round for one sex. Neither image nor table tells anything alone.
- side: does the side that the table names have the finding? Only a fusion that sees places can know.
- lateral_only: the sign is in the lateral view. view_matters: in the frontal view the same sign is harmless. both: each
  view must show its sign.
- withheld: the same weights without any table (xor, side), or without the lateral view.

{markdown_table(HEADINGS, map(cells, found))}

{verdict_table(verdicts(found))}
"""


def main(arguments: list[str] | None = None) -> int:
    """Train, print and write; 1 where something wanted was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = []
    for one in measure(options.seeds):
        found.append(one)
        print(cells(one), flush=True)
    figures = [asdict(one) for one in found]
    return report(None if options.no_write else PAGE, page(found), figures, verdicts(found))


if __name__ == "__main__":
    sys.exit(main())
