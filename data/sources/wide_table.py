"""A labels table with a row a study and a column a view, as one with a row an image."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

from configs.errors import DataError
from data.readers.tables import Table, TableSettings, column_roles, some, view_of_column
from utils.words import is_missing


def row_per_image(table: Table, settings: TableSettings) -> Table:
    """Columns image_<kind> become rows with the columns image and view; itself where the table is of that form.

    Only with settings.study_column. An empty cell is a view that is missing; rows without any image are left out and
    counted in a note. Raises DataError where the table has a column of views besides.
    """
    if settings.study_column is None or "image" in column_roles(table, settings.columns):
        return table
    named = {index: view for index, name in enumerate(table.header) if (view := view_of_column(name))}
    views = {index: _without_number(view, named.values()) for index, view in named.items()}
    if not views:
        return table
    if clash := [name for name in table.header if name in ("image", "view")]:
        raise DataError(
            f"'{table.path}' has the columns {some([table.header[index] for index in views])}, one a view, and "
            f"{some(clash)}: a row is a study or an image, not both"
        )
    kept = [index for index in range(len(table.header)) if index not in views]
    rows, without = [], []
    for line, cells in table.rows:
        there = [(view, cells[index]) for index, view in views.items() if not is_missing(cells[index])]
        rows += [(line, (*(cells[index] for index in kept), image, view)) for view, image in there]
        without += [] if there else [f"line {line}"]
    if not rows:
        raise DataError(f"'{table.path}': no cell of {some([table.header[index] for index in views])} names an image")
    note = f"{len(without)} studies name no image and are left out: {some(without)}"
    header = (*(table.header[index] for index in kept), "image", "view")
    return replace(table, header=header, rows=tuple(rows), notes=(*table.notes, *([note] if without else [])))


def _without_number(view: str, views: Collection[str]) -> str:
    """'lateral' of 'lateral_2', where there is a column of that, too."""
    first = re.sub(r"[_ ]?\d+$", "", view)
    return first if first in views else view
