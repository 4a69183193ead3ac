"""Reports: order, text, and that no check ends in a traceback."""

import logging
from dataclasses import dataclass

from configs.errors import DataError
from utils.examination.checks import Check, run_checks
from utils.examination.findings import Report


@dataclass
class Case:
    data: str | None = None


def fail(error: Exception):
    def look(case: Case, report: Report) -> None:
        raise error

    return look


def test_the_order_is_by_weight():
    report = Report()
    for severity in ("note", "warning", "error", "note", "error"):
        report.add(severity, "x", f"{severity} {len(report.findings)}")
    assert [one.message for one in report.ordered] == ["error 2", "error 4", "warning 1", "note 0", "note 3"]
    assert report.exit_code == 2 and report.verdict == "a run would fail: 2 errors, 1 warning, 2 notes"


def test_a_report_without_errors():
    report = Report()
    assert report.exit_code == 0 and report.as_text().endswith("a run would start: nothing was found")
    report.fact("data", "3 images")
    report.fact("data", "2 patients")
    report.add("warning", "data", "too few", "find more")
    text = report.as_text()
    assert "data  3 images\n      2 patients" in text and "warning  data: too few\n         → find more" in text


def test_whatever_a_check_raises_is_a_finding():
    errors = [
        DataError("bad"),
        OSError(28, "No space left", "f"),
        MemoryError(),
        ImportError("no x"),
        ZeroDivisionError("oh"),
    ]
    report = run_checks(Case(), [Check("c", fail(error)) for error in errors], {})
    told = [one.message for one in report.findings]
    assert [one.severity for one in report.findings] == ["error"] * len(errors)
    assert told[0] == "bad" and "no space left ('f'): free some space" in told[1] and "out of memory" in told[2]
    assert "no x" in told[3] and told[4] == "unforeseen ZeroDivisionError: oh"


def test_warnings_that_are_logged_are_findings_with_advice():
    def warn(case: Case, report: Report) -> None:
        logging.getLogger("anything").warning("%d copies", 3)
        logging.getLogger("anything").info("nothing")
        case.data = "here"

    def after(case: Case, report: Report) -> None:
        report.fact("after", str(case.data))

    handlers = logging.getLogger().handlers[:]
    checks = [Check("one", warn), Check("two", after, ("data",))]
    assert run_checks(Case(), checks, {}, told=("copies",)).findings[0].severity == "note"
    report = run_checks(Case(), checks, {"copies": "remove them"})
    assert [(one.message, one.advice) for one in report.findings] == [("3 copies", "remove them")]
    assert [one.text for one in report.facts] == ["here"] and logging.getLogger().handlers == handlers


def test_a_check_that_lacks_something_is_left_out():
    report = run_checks(Case(), [Check("two", fail(AssertionError()), ("data",))], {})
    assert not report.findings and report.skipped == {"two": "there is no data to examine"}
