"""What was found wrong, or worth knowing, before a training: a list in order of weight, as text and as JSON."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Literal, NamedTuple, get_args

# error: a run would fail. warning: it would run, and its result would be less than it seems. note: worth knowing.
Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
WOULD_FAIL = 2  # the exit code


@dataclass(frozen=True)
class Finding:
    """subject: what was looked at ('data', 'memory'). message: what, and which value. advice: what to do."""

    severity: Severity
    subject: str
    message: str
    advice: str = ""

    def __str__(self) -> str:
        """Two lines: the finding, and below it what to do."""
        first = f"{self.severity:<8} {self.subject}: {self.message}"
        return f"{first}\n         → {self.advice}" if self.advice else first


class Fact(NamedTuple):
    """What is so, without a judgement."""

    subject: str
    text: str


@dataclass
class Report:
    """What all checks together say. scans: which files were looked at, and how. skipped: check → why."""

    findings: list[Finding] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    scans: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, severity: Severity, subject: str, message: str, advice: str = "") -> None:
        """One more finding, unless it is there already."""
        finding = Finding(severity, subject, message, advice)
        if finding not in self.findings:
            self.findings.append(finding)

    def extend(self, findings: Iterable[Finding]) -> None:
        """Several more."""
        for one in findings:
            self.add(one.severity, one.subject, one.message, one.advice)

    def fact(self, subject: str, *texts: str) -> None:
        """More that is so."""
        self.facts += [Fact(subject, text) for text in texts]

    @property
    def ordered(self) -> list[Finding]:
        """Errors, warnings, notes; of one weight in the order in which they were found."""
        return sorted(self.findings, key=lambda one: SEVERITIES.index(one.severity))

    def count(self, severity: Severity) -> int:
        """How many findings are of a weight."""
        return sum(one.severity == severity for one in self.findings)

    def has_error(self, subject: str) -> bool:
        """Whether one is about this."""
        return any((one.severity, one.subject) == ("error", subject) for one in self.findings)

    @property
    def exit_code(self) -> int:
        """WOULD_FAIL where there is an error, else 0."""
        return WOULD_FAIL if self.count("error") else 0

    def as_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        facts: dict[str, list[str]] = {}
        for one in self.facts:
            facts.setdefault(one.subject, []).append(one.text)
        return {
            "would_fail": bool(self.exit_code),
            "findings": [asdict(one) for one in self.ordered],
            "facts": facts,
            "scans": list(self.scans),
            "skipped": dict(self.skipped),
        }

    def as_text(self) -> str:
        """For people: what is so, what was looked at, what was found, and the verdict."""
        width = max((len(one.subject) for one in self.facts), default=0)
        lines, before = [], ""
        for one in self.facts:
            lines.append(f"{'' if one.subject == before else one.subject:<{width}}  {one.text}")
            before = one.subject
        lines += [f"{'scanned' if number == 0 else '':<{width}}  {text}" for number, text in enumerate(self.scans)]
        lines += [f"not examined: {', '.join(checks)} ({why})" for why, checks in self._skipped_by_reason().items()]
        return "\n".join([*lines, "", *map(str, self.ordered), *([""] if self.findings else []), self.verdict])

    def _skipped_by_reason(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for check, why in self.skipped.items():
            found.setdefault(why, []).append(check)
        return found

    @property
    def verdict(self) -> str:
        """The last line."""
        counts = [counted(self.count(severity), severity) for severity in SEVERITIES if self.count(severity)]
        found = ", ".join(counts) or "nothing was found"
        return f"a run would fail: {found}" if self.exit_code else f"a run would start: {found}"


def counted(count: int, noun: str, plural: str = "") -> str:
    """'1 image', '1,200 images'."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def are(count: int, noun: str, plural: str = "", verbs: tuple[str, str] = ("is", "are")) -> str:
    """'1 image is', '2 images are'."""
    return f"{counted(count, noun, plural)} {verbs[count != 1]}"


def have(count: int, noun: str, plural: str = "") -> str:
    """'1 image has', '2 images have'."""
    return are(count, noun, plural, ("has", "have"))


class _Collector(logging.Handler):
    """Hands warnings over, and lines of progress on to the handlers that were there."""

    def __init__(self, warnings: list[str], others: Sequence[logging.Handler]) -> None:
        super().__init__()
        self.warnings, self.others = warnings, others

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self.warnings.append(record.getMessage())
        elif record.name == "utils.progress":
            for handler in self.others:
                handler.handle(record)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Inside, what the program logs as warnings is collected instead of shown, and its other lines are left out."""
    root, found = logging.getLogger(), list[str]()
    before = root.handlers[:]
    root.handlers[:] = [_Collector(found, before)]
    try:
        yield found
    finally:
        root.handlers[:] = before


def advised(message: str, advice: Mapping[str, str]) -> str:
    """The advice for a logged warning: of the first key that is a part of it; '' where none is."""
    return next((text for part, text in advice.items() if part in message), "")
