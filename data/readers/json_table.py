"""A JSON list of studies as the records of a table: an object a study, its images in a list or by view."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from configs.errors import DataError
from data.readers.delimited import Record

_IMAGES = "images"
_FORM = (
    'a list of objects such as {"study_id": "s1", "images": {"frontal": "a.png"}, "labels": ["Mass"]}, where '
    'images may also be [{"image": "a.png", "view": "PA"}]'
)


def read_json_records(text: str) -> Iterator[Record]:
    """(number of the object, cells) of a row an image, the header first; an object without `images` is a row itself.

    Values become the text that stands in the file, true and false 1 and 0, null an empty cell, a list 'a|b'. Raises
    DataError, a sentence after the file's name, for anything else.
    """
    try:
        content = json.loads(text, parse_float=str, parse_int=str, parse_constant=str, object_pairs_hook=_object)
    except (ValueError, RecursionError) as reason:
        raise DataError(f"is no JSON: {reason}") from None
    if not isinstance(content, list) or not content:
        raise DataError(f"is not {_FORM}")
    rows = [(number, row) for number, one in enumerate(content, start=1) for row in _rows(number, one)]
    header = list(dict.fromkeys(key for _, row in rows for key in row))
    yield 0, header
    for number, row in rows:
        yield number, [row.get(key, "") for key in header]


def _object(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise ValueError(f"an object has {twice!r} twice")
    return found


def _rows(number: int, one: object) -> list[dict[str, str]]:
    if not isinstance(one, dict):
        raise DataError(f"object {number} is {type(one).__name__}: the file must be {_FORM}")
    common = {key: _cell(number, key, value) for key, value in one.items() if key != _IMAGES}
    images = one.get(_IMAGES)
    if images is None:
        return [common]
    if isinstance(images, dict):
        images = [{"image": file, "view": view} for view, file in images.items() if file is not None]
    if not isinstance(images, list) or not all(isinstance(image, (dict, str)) for image in images):
        raise DataError(f"object {number}: {_IMAGES!r} must be files by view, or a list of them: {_FORM}")
    listed = [{"image": image} if isinstance(image, str) else image for image in images]
    return [common | {key: _cell(number, key, value) for key, value in image.items()} for image in listed]


def _cell(number: int, key: str, value: object) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, str):
        return value.strip()
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "|".join(value)
    raise DataError(f"object {number}: {key!r} must be a text, a number, true, false, null or a list of texts")
