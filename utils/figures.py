"""What all images of figures share: colours, a figure without pyplot, panels per class, whole files.

matplotlib is imported where it is used, through its object-oriented interface: no pyplot, hence no window, no global
state and no leak.
"""

from __future__ import annotations

import io
import math
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from utils.atomic_file import write_atomically
from utils.fonts import set_fonts, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VectorFormat = Literal["svg", "pdf"]
FORMATS = ("png", *get_args(VectorFormat))

DPI = 120
MAX_PANELS = 20
# Of a class name over a panel, in two lines.
TITLE_LETTERS = 48

# Okabe & Ito's palette, distinguishable with every common kind of colour blindness.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6E6E6E"


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure of so many inches whose parts are laid out so that no text lies on another."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)  # inches
    return Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")


def panels_to_show(positives: Sequence[int]) -> list[int]:
    """Which classes get a panel: all, or of more than 20 the 20 with the most positives; in their order."""
    order = sorted(range(len(positives)), key=lambda k: -positives[k])
    return sorted(order[:MAX_PANELS])


def panel_grid(panels: int) -> tuple[int, int]:
    """Columns and rows: one row up to four panels, at most five columns."""
    columns = panels if panels <= 4 else min(5, math.ceil(math.sqrt(panels)))
    columns = max(columns, 1)
    return columns, max(1, math.ceil(panels / columns))


def panel_figure(panels: int, height: float = 3.15) -> tuple[Figure, list[Axes]]:
    """A figure of square panels, `height` inches per row with its title; unused panels are hidden."""
    columns, rows = panel_grid(panels)
    figure = new_figure(max(2.5 * columns, 4.2), height * rows + 0.6)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for spare in axes[panels:]:
        spare.set_visible(False)
    return figure, axes[:panels]


def panel_title(axes: Axes, name: str, *lines: str) -> None:
    """A class name of any length, in two lines at most, and what follows below it."""
    wrapped = wrap(name, TITLE_LETTERS // 2, 2)
    # parse_math off: a class may be named "$x", which is not meant as a formula.
    axes.set_title("\n".join([wrapped, *lines]), fontsize=9, parse_math=False)


def caption(figure: Figure, lines: Sequence[str], displayed: int, total: int) -> None:
    """A title of several lines, wrapped to the figure; the last line states how many classes are shown, if not all."""
    more = [f"shown: the {displayed} classes with the most positives"] if displayed < total else []
    width = int(12.5 * figure.get_figwidth())  # characters of 11 points
    text = "\n".join(part for line in [*lines, *more] for part in textwrap.wrap(line, width))
    figure.suptitle(text, fontsize=11, parse_math=False)


def unit_square(axes: Axes) -> None:
    """Both axes from 0 to 1, with little air, as long as each other."""
    axes.set_box_aspect(1)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)


def unit_ticks(axes: Axes) -> None:
    """Ticks at 0, 0.5 and 1, a grid, no frame."""
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"], fontsize=8)
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"], fontsize=8)
    tidy(axes)


def say(axes: Axes, text: str) -> None:
    """Words instead of a plot, without ticks that would mean nothing."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, ha="center", va="center", color=GREY, transform=axes.transAxes)


def say_undefined(axes: Axes, positives: int, negatives: int) -> None:
    """Why a class has no curve: which kind of label it lacks."""
    absent = "labels" if not positives + negatives else "negatives" if positives else "positives"
    say(axes, f"undefined:\nno {absent}")


def tidy(axes: Axes) -> None:
    """A faint grid behind the data, and no frame above and to the right."""
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    return encoded(figure, "png")


def encoded(figure: Figure, kind: Literal["png"] | VectorFormat, dpi: int = DPI) -> bytes:
    """A figure as the bytes of a file: 'png', 'svg' or 'pdf'. The same figure gives the same bytes.

    SVG and PDF hold text as text; SVG names its fonts, PDF brings their letters along.
    """
    from matplotlib import rc_context

    set_fonts(figure)
    buffer = io.BytesIO()
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "HybridMedNet", "pdf.fonttype": 42}):
        figure.savefig(buffer, dpi=dpi, format=kind, metadata=dates.get(kind))
    return buffer.getvalue()


def write_figure(figure: Figure, path: str | os.PathLike[str], dpi: int = DPI) -> None:
    """Save under a temporary name in the same folder, then rename: a reader never sees half an image."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    kind = target.suffix.lstrip(".").lower() or "png"
    if kind not in FORMATS:
        raise ValueError(f"a figure is written as {', '.join(FORMATS)}, not as '{target.name}'")
    write_atomically(target, encoded(figure, cast(Literal["png"] | VectorFormat, kind), dpi))
