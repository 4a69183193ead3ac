"""What explained studies become: a table, a summary as JSON and as text, waterfalls, a beeswarm a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np

from explain.beeswarm import summary_figure
from explain.explained_study import UNDEFINED, RankSummary, TableSummary, summarise_tables
from explain.figure_labels import file_stem
from explain.rank_correlation import RankCorrelation
from explain.shapley import MAX_EXACT, Bools, Floats
from explain.table_explainer import NamedStudy
from explain.table_explanations import write_explanations
from explain.waterfall import UNIT, waterfall_figure
from utils.figures import write_figure
from utils.intervals import plain
from utils.text import printable

TABLE_FILE = "table_explanations.csv"
WATERFALLS, SUMMARIES = "waterfall", "summary"
MAX_WATERFALLS = 50
# Where classes exclude one another, a logit alone is no log-odds.
EXCLUSIVE_UNIT = "logit of the class, before the softmax"
STRONGEST = 4

Figure = float | Literal["undefined"]


class OfClass(TypedDict, total=False):
    """A study and a class. base: the output without columns and views. Of methods that were not asked for: nothing."""

    output: float
    base: float
    additivity_error: float
    lime_r_squared: Figure
    rank_correlation_columns: Figure
    rank_correlation_views: Figure


class TableRecord(TypedDict):
    """studies: study → class → its figures."""

    classes: list[str]
    summary: TableSummary
    studies: dict[str, dict[str, OfClass]]


@dataclass(frozen=True)
class Called:
    """What the model says of a study. text: the classes it calls. classes: those of the K explained ones whose
    waterfalls are drawn. probabilities: of all K."""

    text: str
    classes: tuple[int, ...]
    probabilities: Sequence[float]

    @classmethod
    def of(
        cls,
        probabilities: Floats,
        called: Bools,
        class_names: Sequence[str],
        classes: Sequence[int],
        every: bool,
    ) -> Called:
        """probabilities, called: of all classes. classes: the K explained ones. every: whether each is drawn; else the
        likeliest of those that are called, or of all where none is."""
        own, yes = probabilities[list(classes)], called[list(classes)]
        likeliest = int(np.where(yes, own + 1, own).argmax())
        text = called_text(called, class_names) or "no finding"
        return cls(text, tuple(range(len(own))) if every else (likeliest,), own.tolist())


@dataclass(frozen=True)
class TableReport:
    """studies: explained, with what is `called` in them. class_names: K. exclusive: whether they exclude each other.
    title: of which studies these are."""

    studies: Sequence[NamedStudy]
    called: Sequence[Called]
    class_names: Sequence[str]
    exclusive: bool
    title: str = ""

    @property
    def summary(self) -> TableSummary:
        """See `summarise_tables`."""
        return summarise_tables([study.explained for study in self.studies], self.class_names)

    def write(self, folder: Path) -> None:
        """The table and, of Shapley values, the figures; at most MAX_WATERFALLS of single studies."""
        rows = (
            row for one in self.studies for row in one.explained.rows(one.name, self.class_names, one.names, one.cells)
        )
        write_explanations(rows, folder / TABLE_FILE)
        pairs = ((one, called, k) for one, called in zip(self.studies, self.called) for k in called.classes)
        for study, called, k in islice(pairs, MAX_WATERFALLS):
            self._waterfall(folder / WATERFALLS, study, called, k)
        for k in range(len(self.class_names)):
            self._beeswarm(folder / SUMMARIES, k)

    def content(self) -> TableRecord:
        """For JSON."""
        studies = {
            one.name: {name: self._record(one, k) for k, name in enumerate(self.class_names)} for one in self.studies
        }
        return {"classes": list(self.class_names), "summary": self.summary, "studies": studies}

    def strongest(self, k: int) -> list[tuple[str, float]]:
        """The players that move class k most: (name, mean |φ| over all studies); () without Shapley values."""
        names, _, phi, _ = self._together(k)
        means = np.abs(phi).mean(axis=0) if len(phi) else np.zeros(len(names))
        return [(names[i], float(means[i])) for i in np.argsort(-means, kind="stable")[:STRONGEST] if means[i] > 0]

    @property
    def _unit(self) -> str:
        return EXCLUSIVE_UNIT if self.exclusive else UNIT

    def _record(self, study: NamedStudy, k: int) -> OfClass:
        explained, found = study.explained, OfClass(output=float(study.output[k]))
        if explained.shapley is not None:
            found["base"] = float(explained.shapley.base[k])
            gained = study.output[k] - explained.shapley.base[k]
            found["additivity_error"] = float(abs(explained.shapley.values[:, k].sum() - gained))
        if explained.lime is not None:
            found["lime_r_squared"] = _figure(explained.lime.r_squared[k])
        if explained.agreements:
            found["rank_correlation_columns"] = _rank(explained.agreements[k].columns)
            found["rank_correlation_views"] = _rank(explained.agreements[k].views)
        return found

    def _waterfall(self, folder: Path, study: NamedStudy, called: Called, k: int) -> None:
        shapley = study.explained.shapley
        if shapley is None:
            return
        name = self.class_names[k]
        lines = [
            f"study {study.name}, probability {called.probabilities[k]:.2f}",
            f"called: {called.text.replace('|', ' | ')}",
        ]
        figure = waterfall_figure(
            study.names,
            study.cells,
            shapley.values[:, k],
            float(shapley.base[k]),
            class_name=name,
            title="; ".join(lines),
            standard_error=shapley.standard_error[:, k],
            attention=study.explained.attention,
            unit=self._unit,
        )
        write_figure(figure, folder / f"{file_stem(study.name, name)}.png")

    def _beeswarm(self, folder: Path, k: int) -> None:
        if any(study.explained.shapley is None for study in self.studies):
            return
        names, sizes, phi, playing = self._together(k)
        figure = summary_figure(
            names, sizes, phi, playing, class_name=self.class_names[k], unit=self._unit, title=self.title
        )
        write_figure(figure, folder / f"{file_stem(self.class_names[k])}.png")

    def _together(self, k: int) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
        """(names of all players, sizes, φ, playing [N, players]): a study has not the players of every other."""
        names = list(dict.fromkeys(name for study in self.studies for name in study.names))
        sizes = np.full((len(self.studies), len(names)), np.nan)
        phi, playing = np.zeros(sizes.shape), np.zeros(sizes.shape, bool)
        for row, study in enumerate(self.studies):
            at = [names.index(name) for name in study.names]
            sizes[row, at], playing[row, at] = study.sizes, study.explained.playing
            if study.explained.shapley is not None:
                phi[row, at] = study.explained.shapley.values[:, k]
        return names, sizes, phi, playing


def called_text(called: Bools, class_names: Sequence[str]) -> str:
    """'A|B', '' where no class is called."""
    return "|".join(name for name, yes in zip(class_names, called) if yes)


def _figure(value: float) -> Figure:
    number = plain(float(value))
    return UNDEFINED if number is None else number


def _rank(found: RankCorrelation) -> Figure:
    return _figure(found.value)


def format_tables(title: str, report: TableReport) -> str:
    """A table for people, a line a class."""
    summary = report.summary
    head = ["class", "additivity", "LIME R²", "± seeds", "ρ columns", "ρ views", "strongest (mean |φ|)"]
    worst = "–" if summary["additivity"] is None else f"{summary['additivity']:.0e}"
    rows = [head]
    for k, name in enumerate(report.class_names):
        of = summary["classes"][name]
        strongest = ", ".join(f"{printable(player)} {mean:.2g}" for player, mean in report.strongest(k))
        ranks = [_shown(of["rank_correlation_columns"]), _shown(of["rank_correlation_views"])]
        spread = "–" if of["lime_spread"] is None else f"{of['lime_spread']:.2g}"
        fit = [_number(of["lime_r_squared"]), spread]
        rows.append([printable(name), worst, *fit, *ranks, strongest or "–"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([title, lines[0], "-" * len(lines[0]), *lines[1:], *_notes(report)])


def _notes(report: TableReport) -> list[str]:
    methods = report.studies[0].explained if report.studies else None
    notes, summary = [], report.summary
    if summary["exact"] < summary["studies"] and summary["largest_standard_error"] is not None:
        sampled = f"{summary['studies'] - summary['exact']} of {summary['studies']} studies"
        error = f"{summary['largest_standard_error']:.1g}"
        notes.append(f"{sampled} have more than {MAX_EXACT} with a value: sampled, with standard errors up to {error}.")
    if methods is not None and methods.shapley is not None:
        notes.append("additivity: the largest |Σφ − (output − output without columns and views)|.")
    elif methods is not None:
        notes.append("Figures are drawn of Shapley values: without them there is none.")
    if methods is not None and methods.lime is not None:
        notes.append(
            "LIME R²: below about 0.5 its coefficients describe something else; ± seeds: their largest spread."
        )
    if methods is not None and methods.agreements:
        notes.append(
            "ρ: mean rank correlation of attention weights with |φ|; undefined below three with a value. Attention is "
            "no explanation by itself."
        )
    return notes


def _shown(found: RankSummary | None) -> str:
    if found is None:
        return "–"
    return UNDEFINED if isinstance(found["mean"], str) else f"{found['mean']:.2f} of {found['studies']}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
