"""Progress of a pass over batches: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys

from utils.json_output import active
from utils.text import printable

logger = logging.getLogger(__name__)


class Progress:
    """Counts micro-batches of one pass, or what `unit` says.

    style: 'bar', 'plain' or 'auto' (a bar where stderr is a terminal); no bar where all output is JSON. every: batches
    between plain lines.
    """

    def __init__(
        self, total: int, title: str, style: str = "auto", every: int = 10, start: int = 0, unit: str = "batch"
    ) -> None:
        self.total, self.title, self.every, self.done = total, printable(title), every, start
        self.bar = None
        if not active() and (style == "bar" or (style == "auto" and sys.stderr.isatty())):
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=start, desc=self.title, leave=False, dynamic_ncols=True, unit=unit)

    def advance(self, batches: int, **figures: float | str) -> None:
        """Tell that so many batches are done, and what to show beside."""
        figures = {printable(name): printable(value) for name, value in figures.items()}
        before, self.done = self.done, self.done + batches
        if self.bar is not None:
            self.bar.set_postfix(figures, refresh=False)
            self.bar.update(batches)
        elif self.done // self.every > before // self.every or self.done == self.total:
            displayed = "  ".join(f"{name} {value}" for name, value in figures.items())
            logger.info("%s  %d/%d  %s", self.title, self.done, self.total, displayed)

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()
