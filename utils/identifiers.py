"""What results say of whose image it is, and texts for results that must not say it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

# Attributes of DICOM files by their keywords, which are columns of results.
IDENTIFIERS = ("PatientID", "StudyInstanceUID", "SOPInstanceUID", "Modality", "ViewPosition")
_QUOTED = re.compile(r"""'[^']*'|"[^"]*\"""")
_UID = re.compile(r"\b\d+(?:\.\d+){3,}\b")
HIDDEN = "***"


def without_names(text: str, names: Iterable[str] = (), paths: Iterable[Path] = ()) -> str:
    """Names, paths with each of their parts, whatever stands in quotation marks, and UIDs are '***'."""
    known = {name for name in names if name}
    for path in paths:
        known |= {str(path), path.name, path.stem, *(part for part in path.parts if len(part) > 1)}
    for name in sorted(known, key=len, reverse=True):  # the longest first: others may be parts of it
        text = text.replace(name, HIDDEN)
    return _UID.sub(HIDDEN, _QUOTED.sub(f"'{HIDDEN}'", text))
