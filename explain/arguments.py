"""The command line of `python -m explain`; torch is not imported for it."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence

from configs.errors import ExplanationError
from configs.followed import EXPLAIN
from utils.arguments import Parser, Values, split_known
from utils.command_line import add_overrides
from utils.map_methods import HEATMAPS, OF_TABLES
from utils.text import alike_between

OVERLAYS = 8
# Studies of which tables are explained, spread over the split, unless --count says another number.
TABLES = 50
# What speaks of heatmaps alone, and what it is where nobody says it.
_OF_HEATMAPS: dict[str, object] = {"level": "auto", "boxes": None, "masks": None, "limit": None, "sanity": False}


def parse_arguments(description: str | None, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """See above; description: of the script. method: [] where only --table is asked for."""
    parser = Parser(
        prog="python -m explain",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="The methods, and how far to believe them: docs/explanation.md.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a run's folder, a .pth or .safetensors file")
    add("--data", metavar="PATH", help="folder or .npz; without it where the config.yaml beside the checkpoint says")
    add("--labels", metavar="FILE", help="labels table; without it labels.csv in the data's folder")
    add("--split", choices=("test", "val", "train", "all"), default="test", help="which images (test)")
    add_overrides(parser, EXPLAIN)
    add(
        "--method",
        metavar="NAME",
        action=Values,
        names=(*HEATMAPS, "all"),
        checked=False,
        help="of heatmaps, one or more, or all (grad_cam, without --table none)",
    )
    add(
        "--table",
        metavar="NAME",
        action=Values,
        names=OF_TABLES,
        checked=False,
        help="of columns and views: shapley, lime, attention, one or more",
    )
    add("--classes", metavar="NAME", action=Values, help="only these classes")
    add("--level", type=parse_level, default="auto", help="0 (finest) to -1 (coarsest), fused or auto (auto)")
    add("--boxes", metavar="FILE", help="table of boxes: image, finding, x, y, w, h; or NIH's BBox_List_2017.csv")
    add("--masks", metavar="DIR", help="the sample data's masks, instead of boxes")
    add("--limit", metavar="N", type=int, help="measure on the first N annotated images only")
    add(
        "--count",
        metavar="N",
        type=int,
        help=f"overlays to draw, the classes in turn ({OVERLAYS}); studies whose table is explained ({TABLES})",
    )
    add("--sanity", action="store_true", help="randomise the network from the head on: the maps must change")
    add("--output", metavar="DIR", help="where to write; without it explanation-<split> beside the checkpoint")
    options = parser.parse_args(arguments)
    options.method = options.method or ([] if options.table else ["grad_cam"])
    options.table = options.table or []
    return options


def parse_level(text: str) -> int | str:
    """A number, or a word that `resolve_level` judges."""
    return int(text) if text.lstrip("-").isdigit() else text


def check_options(options: argparse.Namespace, methods: Sequence[str], table_methods: Sequence[str]) -> None:
    """ExplanationError for methods that there are not, and for options that nothing would follow."""
    for method in options.method:
        if method not in methods:
            hint = " (that is one of --table's)" if method in table_methods else ""
            raise ExplanationError(f"unknown method {method!r}{hint}: one of {', '.join(methods)}, or all")
    for method in options.table:
        if method not in table_methods:
            hint = " (that is one of --method's)" if method in methods else ""
            raise ExplanationError(f"--table: unknown method {method!r}{hint}: one of {', '.join(table_methods)}")
    idle = [f"--{name}" for name, default in _OF_HEATMAPS.items() if getattr(options, name) != default]
    if not options.method and idle:
        raise ExplanationError(f"{', '.join(idle)}: no effect on --table alone; name heatmaps by --method as well")
    if options.count is not None and options.count < (1 if options.table else 0):
        raise ExplanationError(f"--count {options.count}: at least 1")
    if options.limit is not None and options.limit < 0:
        raise ExplanationError(f"--limit {options.limit}: at least 0")


def chosen_classes(names: Sequence[str] | None, class_names: Sequence[str]) -> tuple[int, ...]:
    """The classes that --classes names, in their order, all without it. Raises ExplanationError for any other."""
    if names is None:
        return tuple(range(len(class_names)))
    names = split_known(names, class_names)
    for name in names:
        if name not in class_names:
            close = difflib.get_close_matches(name, class_names, 1)
            hint = f": did you mean {close[0]!r}?" if close else alike_between([name], class_names)
            raise ExplanationError(f"--classes: the model has no class {name!r}{hint} (it has {_some(class_names)})")
    return tuple(dict.fromkeys(class_names.index(name) for name in names))


def _some(names: Sequence[str], most: int = 20) -> str:
    """The first of some names."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
