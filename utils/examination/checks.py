"""Checks, one after another, none of which can end in a traceback."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from configs.errors import HybridMedNetError
from utils.command_line import describe_error
from utils.examination.findings import Report, Severity, advised, collected_warnings

logger = logging.getLogger("doctor")
Case = TypeVar("Case")


class Check(NamedTuple, Generic[Case]):
    """look: adds to the report, and to the case what later checks need. needs: attributes of the case, which are None
    where the check that finds them could not.
    """

    subject: str
    look: Callable[[Case, Report], None]
    needs: tuple[str, ...] = ()


def run_checks(
    case: Case, checks: Sequence[Check[Case]], advice: Mapping[str, str], told: Sequence[str] = ()
) -> Report:
    """Every check that can be made; what one of them raises, or logs as a warning, is what it found.

    advice: for warnings, see `advised`. told: parts of warnings that are notes.
    """
    report = Report()
    for check in checks:
        lacking = [name for name in check.needs if getattr(case, name) is None]
        if lacking:
            report.skipped.setdefault(check.subject, f"there is no {' and no '.join(lacking)} to examine")
            continue
        with collected_warnings() as warnings:
            _look(case, check, report)
        for text in warnings:
            severity: Severity = "note" if any(part in text for part in told) else "warning"
            report.add(severity, check.subject, text, advised(text, advice))
    return report


def _look(case: Case, check: Check[Case], report: Report) -> None:
    try:
        check.look(case, report)
    except (HybridMedNetError, OSError, MemoryError) as error:
        report.add("error", check.subject, describe_error(error))
    except ImportError as error:
        report.add(
            "error",
            check.subject,
            f"a package cannot be imported: {error}",
            "python -m pip install -r requirements.txt",
        )
    except Exception as error:
        report.add("error", check.subject, *_unforeseen(error))


def _unforeseen(error: Exception) -> tuple[str, str]:
    """What no check foresaw, and so no training either: (message, advice)."""
    text = " ".join(str(error).split())[:500]
    logger.debug("raised here", exc_info=error)
    if "out of memory" in text:
        return text, "see what else uses the device; a smaller MODEL.backbone or DATA.image_size takes less"
    advice = "a training would end in the same way: please report it, with this line and your settings"
    return f"unforeseen {type(error).__name__}: {text}", advice
