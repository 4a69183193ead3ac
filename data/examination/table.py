"""Clinical columns: two units in one, values far from all others, categories that are none."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np

from data.clinical_table import CategoricalColumn, ClinicalTable, NumericColumn
from data.readers.tables import some
from utils.examination.findings import Finding, counted

# A gap between two neighbouring values, and between the medians on its sides, as factors: mg/dl and µmol/l are 88
# apart, m and cm 100, years and months 12; of what one person and another have, few columns differ so much in a step.
_GAP, _APART = 3.0, 8.0
_FAR = 10.0  # robust deviations
_MANY = 50  # categories
_DISPLAYED = 5
_FEWEST = 8


def describe_table(table: ClinicalTable) -> list[str]:
    """A line a column: how many values are known, and which."""
    lines = []
    for column in table.columns:
        known = int(column.known.sum())
        if isinstance(column, NumericColumn):
            values = column.values[column.known]
            said = f"{values.min():g} to {values.max():g}, median {np.median(values):g}" if known else "no value"
        else:
            said = some([f"{word} {count}" for word, count in Counter(filter(None, column.words)).most_common()], 6)
        lines.append(f"{column.name}: {said or 'no value'} ({known:,} of {len(table.has_row):,} known)")
    return lines


def table_findings(table: ClinicalTable) -> list[Finding]:
    """Of the columns that a network is given; what cannot be learnt from at all is an error of `TableEncoding.fit`."""
    found: list[Finding] = []
    for column in table.columns:
        found += _gaps(column, len(table.has_row))
        found += _numeric(column) if isinstance(column, NumericColumn) else _categorical(column)
    return found


def _gaps(column: NumericColumn | CategoricalColumn, studies: int) -> Iterator[Finding]:
    known = int(column.known.sum())
    if 0 < known < studies / 2:
        yield Finding(
            "note",
            "table",
            f"column {column.name!r} is known for {known:,} of {studies:,} studies",
            "whether it is known may say more than what it says (DATA.table.missing=indicator shows it to the network)",
        )


def _numeric(column: NumericColumn) -> Iterator[Finding]:
    values = np.sort(column.values[column.known])
    if len(values) < _FEWEST:
        return
    split = _two_units(values)
    if split:
        few, most = sorted((values[:split], values[split:]), key=len)
        factor = max(np.median(few), np.median(most)) / min(np.median(few), np.median(most))
        yield Finding(
            "warning",
            "table",
            f"column {column.name!r}: {counted(len(few), 'value')} around {np.median(few):g} and {len(most):,} around "
            f"{np.median(most):g}, a factor of {factor:.3g}: two units?",
            "bring the column to one unit",
        )
        return
    middle = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(values - middle)))
    far = values[np.abs(values - middle) > _FAR * spread] if spread else values[:0]
    if 0 < len(far) <= max(0.02 * len(values), 1):
        shown = some([f"{value:g}" for value in dict.fromkeys(far.tolist())], _DISPLAYED)
        yield Finding(
            "warning",
            "table",
            f"column {column.name!r}: {counted(len(far), 'value')} far from all others (median {middle:g}): {shown}",
            "a slip, another unit, or a code for 'unknown' such as 999: correct or empty those cells",
        )


def _two_units(values: np.ndarray) -> int:
    """Where sorted values fall into two groups by a factor; 0: they do not. What is not above 0 has no factor."""
    if values[0] <= 0:
        return 0
    steps = np.diff(np.log(values))
    at = int(np.argmax(steps)) + 1
    apart = math.log(float(np.median(values[at:]) / np.median(values[:at])))
    within = max(math.log(values[at - 1] / values[0]), math.log(values[-1] / values[at]), math.log(1.2))
    clear = steps[at - 1] > math.log(_GAP) and apart > math.log(_APART)
    # Of one value apart nothing is known but that it is far off; of two groups each is narrower than what parts them.
    return at if clear and within < apart and min(at, len(values) - at) > 1 else 0


def _categorical(column: CategoricalColumn) -> Iterator[Finding]:
    counts = Counter(filter(None, column.words))
    if len(counts) > _MANY and len(counts) > counts.total() / 2:
        yield Finding(
            "warning",
            "table",
            f"column {column.name!r} has {len(counts):,} categories in {counts.total():,} studies: a name or a free "
            "text?",
            "take it out of DATA.table.columns, or give it as numbers",
        )
    once = [word for word, count in counts.items() if count == 1]
    if once and len(counts) <= _MANY:
        yield Finding(
            "note",
            "table",
            f"column {column.name!r}: {counted(len(once), 'category', 'categories')} in a single study each, which "
            f"count as 'other': {some(once, _DISPLAYED)}",
            "other spellings of one category? Bring them to one",
        )
