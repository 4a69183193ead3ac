"""What the pages of docs/benchmarks are made of: tables in Markdown, and figures as JSON beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path


def markdown_table(heading: str, rows: Iterable[Sequence[str] | str]) -> str:
    """heading: 'one | two | three'. rows: cells, or such a line each."""
    lines = [row if isinstance(row, str) else " | ".join(row) for row in rows]
    return "\n".join([f"| {heading} |", "|" + " --- |" * (heading.count("|") + 1), *(f"| {line} |" for line in lines)])


def write_page(path: Path, text: str, figures: object) -> None:
    """The page, and what it was made from as .json beside it."""
    path.write_text(text, encoding="utf-8")
    path.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


# What was wanted, what came, and whether that is enough; None: it was not measured.
Verdict = tuple[str, str, bool | None]


def verdict_table(verdicts: Iterable[Verdict]) -> str:
    """A row a verdict: met, MISSED or not measured."""
    words = {True: "met", False: "MISSED", None: "not measured"}
    return markdown_table("wanted | seen | ", [(wanted, seen, words[enough]) for wanted, seen, enough in verdicts])


def exit_code(verdicts: Iterable[Verdict]) -> int:
    """1 where something was missed."""
    return int(any(enough is False for _, _, enough in verdicts))


def report(path: Path | None, text: str, figures: object, verdicts: Iterable[Verdict]) -> int:
    """Print the page, write it unless `path` is None, and give the exit code."""
    print(text)
    if path is not None:
        write_page(path, text, figures)
    return exit_code(verdicts)
