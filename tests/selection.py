"""Options of pytest that run a part of the cases, and that begin no more of them after so many minutes.

--part 2/6 runs the second of six parts. Which part a case is in depends on its name alone, so that each case is in
exactly one and the parts of different commits are comparable.
--minutes 15 skips what has not begun 15 minutes after pytest started; a case that runs is not interrupted. The summary
says how many did not run, and of which files.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections import Counter
from collections.abc import Callable

import pytest


def part_of(nodeid: str, count: int) -> int:
    """The part, 1 to count, that a case belongs to."""
    # Not a checksum: those of names that differ in one digit are alike modulo small numbers.
    return int.from_bytes(hashlib.sha256(nodeid.encode()).digest()[:8]) % count + 1


def parse_part(text: str) -> tuple[int, int]:
    """'2/6' → (2, 6)."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"a part is written K/N with 1 <= K <= N, 2/6 for one; not {text!r}")
    return int(number), int(count)


def parse_minutes(text: str) -> float:
    """'15' → 15.0."""
    try:
        minutes = float(text)
    except ValueError:
        minutes = -1.0
    if not 0 <= minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"minutes are a number that is not negative, 15 for one; not {text!r}")
    return minutes


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("selection")
    group.addoption("--part", type=parse_part, metavar="K/N", help="run part K of N; together they are all cases")
    group.addoption("--minutes", type=parse_minutes, metavar="M", help="begin no case M minutes after the start")


def pytest_configure(config: pytest.Config) -> None:
    part, minutes = config.getoption("--part"), config.getoption("--minutes")
    if part is not None:
        config.pluginmanager.register(PartSelection(*part), "part-selection")
    if minutes is not None:
        # Processes of xdist start later; what they are given is the time of the first one.
        start = getattr(config, "workerinput", {}).get("start", time.time())
        config.pluginmanager.register(TimeLimit(minutes, start), "time-limit")


class PartSelection:
    """Deselects the cases of the other parts."""

    def __init__(self, number: int, count: int) -> None:
        self.number, self.count = number, count
        self.deselected = 0

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        others = [item for item in items if part_of(item.nodeid, self.count) != self.number]
        self.deselected = len(others)
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if part_of(item.nodeid, self.count) == self.number]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        """With xdist only the workers collect."""
        self.deselected = getattr(node, "workeroutput", {}).get("deselected", self.deselected)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A part without cases is no error where the other parts have some."""
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["deselected"] = self.deselected
        elif session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self.deselected:
            session.exitstatus = pytest.ExitCode.OK

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(
            f"part {self.number} of {self.count}: {self.deselected} cases are in the other parts", bold=True
        )


class TimeLimit:
    """Skips the cases that have not begun when the time is over.

    start: time.time() of the start. clock: gives the present time.
    """

    def __init__(self, minutes: float, start: float, clock: Callable[[], float] = time.time) -> None:
        self.minutes, self.start, self.clock = minutes, start, clock
        self.reason = f"not run: the {minutes:g} minutes were over"

    def is_over(self) -> bool:
        return self.clock() - self.start >= 60 * self.minutes

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: object) -> None:
        node.workerinput["start"] = self.start  # type: ignore[attr-defined]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        if self.is_over():
            pytest.skip(self.reason)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        skipped = terminalreporter.stats.get("skipped", [])
        not_run = [report.nodeid for report in skipped if self.reason in str(report.longrepr)]
        if not_run:
            terminalreporter.write_line(summarize(not_run, self.reason), yellow=True, bold=True)


def summarize(nodeids: list[str], reason: str) -> str:
    """How many cases, and how many of each file."""
    files = Counter(nodeid.partition("::")[0] for nodeid in nodeids)
    listed = ", ".join(f"{name} {count}" for name, count in sorted(files.items()))
    return f"{len(nodeids)} cases {reason}: {listed}"
