"""Installed packages against requirements.txt, and torch against the packages that are built for one torch alone."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from utils.examination.findings import Finding

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
# Their binaries call into one torch alone.
BUILT_FOR_TORCH = ("torchvision",)
_DISPLAYED = ("torch", "torchvision", "timm")
_OLDEST_PYTHON = (3, 11)
_INSTALL = "python -m pip install -r requirements.txt"


def version_of(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def displayed_versions() -> str:
    """'Python 3.12.3, torch 2.10.0+cpu, …'."""
    python = ".".join(map(str, sys.version_info[:3]))
    return ", ".join([f"Python {python}", *(f"{name} {version_of(name) or 'not installed'}" for name in _DISPLAYED)])


def version_findings(requirements: Path = REQUIREMENTS) -> list[Finding]:
    """What is missing or of a version that requirements.txt refuses; pairs that do not fit.

    A missing or unfit package is an error: which part of a run asks for it first is not worth finding out by failing.
    """
    return [*_python(), *_unmet(requirements), *_pairs()]


def _python() -> Iterator[Finding]:
    if sys.version_info < _OLDEST_PYTHON:
        found, wanted = (".".join(map(str, one[:2])) for one in (sys.version_info, _OLDEST_PYTHON))
        yield Finding("error", "versions", f"Python {found} is older than {wanted}", f"use Python {wanted} or newer")


def _unmet(path: Path) -> Iterator[Finding]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        yield Finding("note", "versions", f"'{path}' cannot be read ({error.strerror}): versions were not compared")
        return
    for line in lines:
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        try:
            wanted = Requirement(text) if text and not text.startswith("-") else None
        except InvalidRequirement:
            yield Finding("note", "versions", f"'{path.name}': {text!r} is no requirement: it was not compared")
            continue
        if wanted is None or (wanted.marker is not None and not wanted.marker.evaluate()):
            continue
        found = version_of(wanted.name)
        if found is None:
            yield Finding("error", "versions", f"{wanted.name} is not installed", _INSTALL)
        elif not wanted.specifier.contains(found, prereleases=True):
            told = f"{wanted.name} is {found}, and requirements.txt wants {wanted.specifier}"
            yield Finding("error", "versions", told, _INSTALL)


def _pairs() -> Iterator[Finding]:
    torch = version_of("torch")
    for package in BUILT_FOR_TORCH if torch else ():
        needs = (Requirement(text) for text in (_requires(package) or ()))
        for wanted in needs:
            if wanted.name == "torch" and not wanted.specifier.contains(str(torch).partition("+")[0], prereleases=True):
                yield Finding(
                    "error",
                    "versions",
                    f"{package} {version_of(package)} is built for torch{wanted.specifier}, and torch is {torch}",
                    "install both from one index, at once: python -m pip install torch torchvision --index-url …",
                )


def _requires(package: str) -> list[str] | None:
    try:
        return metadata.requires(package)
    except metadata.PackageNotFoundError:
        return None
