# PYTHON_ARGCOMPLETE_OK
"""Draw one ROC for a paper from what evaluate.py left behind: several classes of a run, or several runs.

python -m evaluation checkpoints/<run> --output roc.pdf                     # its classes, eight at most
python -m evaluation checkpoints/<run> --classes Mass Nodule --output roc.svg
python -m evaluation checkpoints/<run> checkpoints/<other> --classes Mass --labels "image alone" "with table"
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import EvaluationError
from utils.arguments import Parser, Values
from utils.command_line import run_script, show

if TYPE_CHECKING:
    from evaluation.paper_roc import LabelledCurve

FORMATS = (".png", ".svg", ".pdf")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; matplotlib is not imported for it."""
    parser = Parser(
        prog="python -m evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="What the figure is: docs/evaluation.md.",
    )
    add = parser.add_argument
    add("evaluation", metavar="FOLDER", nargs="+", help="a folder that evaluate.py wrote, or a run's with one inside")
    add("--classes", metavar="NAME", action=Values, help="these classes; of several folders one (the most positives)")
    add("--labels", metavar="TEXT", action=Values, help="what the legend calls each curve; else class or folder")
    add("--width", choices=("single", "double"), default="single", help="a column's 89 mm or the page's 183 (single)")
    add("--output", metavar="FILE", default="roc.pdf", help="ends in .png (300 dpi), .svg or .pdf (roc.pdf)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Draw; returns the exit code."""
    return run_script(lambda: draw(parse_arguments(arguments)), arguments)


def draw(options: argparse.Namespace) -> None:
    """Folders → curves → the file."""
    target = Path(options.output)
    if target.suffix.lower() not in FORMATS:
        raise EvaluationError(f"--output '{target}': the name ends in {', '.join(FORMATS)}")

    from evaluation.paper_roc import PAPER_DPI, paper_roc_figure
    from utils.figures import write_figure

    curves, level = curves_of(options.evaluation, options.classes)
    if options.labels and len(options.labels) != len(curves):
        raise EvaluationError(f"--labels: {len(options.labels)} for {len(curves)} curves")
    named = [replace(one, name=label) for one, label in zip(curves, options.labels or [one.name for one in curves])]
    write_figure(paper_roc_figure(named, level, options.width), target, PAPER_DPI)
    show("\n".join([f"{target}: {len(named)} curves", *(one.label(one.name) for one in named)]))


def curves_of(folders: Sequence[str], classes: Sequence[str] | None) -> tuple[list[LabelledCurve], float]:
    """(the curves, the level of their intervals): of one folder its classes, of several one class."""
    from evaluation.paper_roc import class_curves, read_evaluation
    from utils.arguments import split_known

    read = [read_evaluation(Path(folder)) for folder in folders]
    results = [one for _, one in read]
    known = [one["name"] for one in read[0][0]]
    names = split_known(classes, known) if classes else None
    if len(read) == 1:
        return class_curves(*read[0], names), results[0]["interval"]["level"]
    kinds = {
        "split": [one["split"] for one in results],
        "images": [str(one["images"]) for one in results],
        "interval": [f"{one['interval']['level']:.0%}" for one in results],
    }
    for what, values in kinds.items():
        if len({*values}) > 1:
            pairs = ", ".join(f"{value} of '{folder}'" for value, folder in zip(values, folders))
            raise EvaluationError(f"evaluations of different {what} cannot be compared in one figure: {pairs}")
    if names is None and len(known) > 1:
        raise EvaluationError(
            f"several folders: name the class that they are compared in by --classes ({', '.join(known)})"
        )
    if names is not None and len(names) > 1:
        raise EvaluationError(f"--classes: one class for several folders, not {len(names)}")
    found = [class_curves(*one, names)[0] for one in read]
    return [replace(curve, name=Path(folder).name) for curve, folder in zip(found, folders)], results[0]["interval"][
        "level"
    ]


if __name__ == "__main__":
    sys.exit(main())
