"""The field `studies` of a request: which images are a study, what they show, and its row of the clinical table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inference.serve.problems import ServeError, label
from inference.serve.uploads import Asked, Upload

FORM = '{"s1": {"images": {"a.png": "PA", "b.png": "LL"}, "table": {"age": 63, "sex": "F"}}}'


@dataclass(frozen=True)
class Study:
    """One study of a request. images: with the view that each shows, '' where that is unknown. cells: of its row of the
    clinical table, None where it has none.
    """

    name: str
    images: tuple[tuple[Upload, str], ...]
    cells: Mapping[str, str] | None


def studies_of(asked: Asked, columns: Sequence[str]) -> list[Study]:
    """The studies of a request. columns: of the model's table.

    Raises ServeError, naming the study, where images and studies do not go together, or a column is none of the model.
    """
    said = asked.fields.get("studies")
    if not isinstance(said, dict) or not said:
        raise ServeError(400, "this model takes studies, and no field says which", "studies", f"send {FORM}")
    uploads: dict[str, Upload] = {}
    for upload in asked.images:
        if uploads.setdefault(upload.name, upload) is not upload:
            raise ServeError(400, "two images have this name", upload.name, "give each image a name of its own")
    studies = [_study(str(name), record, uploads, columns) for name, record in said.items()]
    if uploads:
        raise ServeError(400, "the image is of no study", next(iter(uploads)), f"name it in 'studies': {FORM}")
    return studies


def _study(name: str, record: object, uploads: dict[str, Upload], columns: Sequence[str]) -> Study:
    """Takes its images out of `uploads`."""
    images = record.get("images") if isinstance(record, dict) else None
    if not isinstance(record, dict) or set(record) - {"images", "table"} or not isinstance(images, dict) or not images:
        raise ServeError(400, "it is no object of 'images' and perhaps 'table'", name, f"send {FORM}")
    found = []
    for image, view in images.items():
        if image not in uploads:
            what = f"there is no image {label(image)!r}, or another study has it"
            raise ServeError(400, what, name, "send each image that is named, and name it once")
        if view is not None and not isinstance(view, str):
            raise ServeError(400, f"the view of {label(image)!r} is no text", name, f"send {FORM}")
        found.append((uploads.pop(image), view or ""))
    return Study(label(name), tuple(found), _cells(name, record.get("table"), columns))


def _cells(name: str, row: object, columns: Sequence[str]) -> dict[str, str] | None:
    if row is None:
        return None
    if not isinstance(row, dict):
        raise ServeError(400, "its 'table' is no object", name, f"send {FORM}")
    for column, value in row.items():
        if column not in columns:
            known = ", ".join(columns) or "none: it takes no table"
            raise ServeError(400, f"the model has no column {label(column)!r}", name, f"its columns: {known}")
        if isinstance(value, bool) or not isinstance(value, (str, int, float, type(None))):
            what = f"column {label(column)!r} is neither a number nor a text"
            raise ServeError(400, what, name, "send a number, a text, or null where it is unknown")
    return {column: "" if value is None else str(value) for column, value in row.items()}
