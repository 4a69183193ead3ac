"""What settings of studies mean together: views and a table, as configs/consistency.py for all others."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from configs.errors import ConfigError

OTHER = "other"  # the kind of a view that no kind names
_MAY_BE_INPUTS = ("view", "age", "sex")


def study_problems(
    study_column: str | None,
    view_kinds: Mapping[str, Sequence[str]] | None,
    required_views: Sequence[str],
    max_views: int | None,
) -> list[str]:
    """Views without studies, and kinds of view that are two things or none."""
    found = []
    if study_column is None:
        given = {"view_kinds": view_kinds is not None, "required_views": bool(required_views)}
        return [
            f"DATA.{key} is for studies: name their column in DATA.study_column, or leave {key} out"
            for key, there in given.items()
            if there
        ]
    kinds = view_kinds or {}
    if OTHER in kinds:
        found.append(f"DATA.view_kinds: {OTHER!r} is what no kind names: leave it out")
    found += [f"DATA.view_kinds: {kind!r} must be a word" for kind in kinds if not kind.strip() or "|" in kind]
    values = Counter(value.casefold().strip() for listed in kinds.values() for value in dict.fromkeys(listed))
    found += [f"DATA.view_kinds: {value!r} cannot be of two kinds" for value, count in values.items() if count > 1]
    if view_kinds is not None:
        found += [
            f"DATA.required_views: {kind!r} is none of DATA.view_kinds ({', '.join(kinds)}){_nearest(kind, kinds)}"
            for kind in required_views
            if kind not in kinds
        ]
    if max_views is not None and len(set(required_views)) > max_views:
        found.append(f"DATA.required_views names {len(required_views)} kinds, DATA.max_views is {max_views}")
    return found


def clinical_problems(
    columns: Mapping[str, str] | Sequence[str],
    file: str | None,
    class_names: Sequence[str] | None,
    roles: Mapping[str, str | None] | None,
    study_column: str | None,
) -> list[str]:
    """Columns that say what is to be predicted or who is who, and a table of which no column is taken."""
    names = list(columns)
    found = [f"DATA.table.columns: {name!r} is there twice" for name, count in Counter(names).items() if count > 1]
    if file is not None and not names:
        found.append(f"DATA.table.file '{file}': no column of it is taken, name them in DATA.table.columns")
    own = {_key(name): name for name in class_names or ()}
    found += [
        f"DATA.table.columns: {name!r} is a class: the network would be given what it is to predict"
        for name in names
        if _key(name) in own
    ]
    said = {_key(column): role for role, column in (roles or {}).items() if column and role not in _MAY_BE_INPUTS}
    said |= {_key(study_column): "study"} if study_column else {}
    found += [
        f"DATA.table.columns: {name!r} is the column of the {said[_key(name)]}" for name in names if _key(name) in said
    ]
    return found


def shortcut_problems(shortcut: bool, sample_studies: bool) -> list[str]:
    """A shortcut that is drawn nowhere."""
    if not shortcut or sample_studies:
        return []
    return [
        "DATA.sample_shortcut is of the drawn studies: set DATA.data_dir=./data/sample_chest_studies, or leave it out"
    ]


def _key(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f": did you mean {close[0]!r}?" if close else ""


def training_problems(aggregator: str | None, fusion: str | None, quantization_aware: bool, pruning: str) -> list[str]:
    """What a network of studies cannot be trained with yet."""
    if aggregator is None and fusion is None:
        return []
    asked = {"TRAIN.quantization_aware": quantization_aware, "TRAIN.pruning.method": pruning == "structured"}
    return [f"{key} is for models of single images: leave it out with studies" for key, on in asked.items() if on]


def check_used(
    aggregator: str | None,
    fusion: str | None,
    view_kinds: Sequence[str] | None,
    table_columns: Mapping[str, str | int] | None,
) -> None:
    """ConfigError where the data have what the network would not see, or the network asks for what they lack."""
    found = []
    if view_kinds is not None and aggregator is None:
        found.append(
            "DATA.study_column makes studies of several images: set MODEL.views.aggregator (max, mean, attention, "
            "cross_attention, learned_weight)"
        )
    if view_kinds is None and aggregator is not None:
        found.append(
            f"MODEL.views.aggregator is '{aggregator}', but nothing makes studies of images: set DATA.study_column"
        )
    if table_columns and fusion is None:
        found.append(
            f"DATA.table.columns gives the network a table ({', '.join(table_columns)}): set MODEL.table.fusion "
            "(concatenate, gated, attention, cross_attention, bilinear)"
        )
    if not table_columns and fusion is not None:
        found.append(f"MODEL.table.fusion is '{fusion}', and there is no table: set DATA.table.columns")
    if found:
        raise ConfigError("\n".join(found))
