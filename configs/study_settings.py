"""Settings of studies: how several views become one vector, what their table is, and how it is added to that vector."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveInt, field_validator

from configs.section import Section
from configs.section import setting as _setting

# What other programs call them.
_OTHER_NAMES = {
    "concat": "concatenate",
    "attn": "attention",
    "cross_attn": "cross_attention",
    "cross_view_attention": "cross_attention",
    "gate": "gated",
}


def _by_its_name(value: object) -> object:
    return _OTHER_NAMES.get(value, value) if isinstance(value, str) else value


class ViewSettings(Section):
    """Several images of a study."""

    section_name: ClassVar[str] = "MODEL.views"

    aggregator: Literal["max", "mean", "attention", "cross_attention", "learned_weight"] | None = _setting(
        None, "How the views of a study become one vector; null: a study is one image."
    )
    dropout: float = _setting(
        0.1, "Chance that a view of a study is left out in training; one of them always stays.", ge=0, lt=1
    )
    backbones: Literal["shared", "separate"] = _setting(
        "shared", "separate: each kind of view has a backbone of its own; all begin with the same weights."
    )
    width: PositiveInt = _setting(64, "Hidden width of the view adapter and of attention over views.")

    _names = field_validator("aggregator", mode="before")(_by_its_name)


class TableSettings(Section):
    """A row of a table beside a study's images."""

    section_name: ClassVar[str] = "MODEL.table"

    fusion: Literal["concatenate", "gated", "attention", "cross_attention", "bilinear"] | None = _setting(
        None, "How the table is added to the images' vector; null: no table."
    )
    width: PositiveInt = _setting(64, "Width of the tokens of columns and of what is hidden in the fusion.")
    rank: PositiveInt = _setting(32, "Rank of bilinear fusion.")
    dropout: float = _setting(
        0.2,
        "Chance that the whole table of a study is left out in training, so that the network works without it.",
        ge=0,
        lt=1,
    )

    _names = field_validator("fusion", mode="before")(_by_its_name)


class ClinicalTableSettings(Section):
    """What is known of a study beside its images, and given to the network."""

    section_name: ClassVar[str] = "DATA.table"

    file: str | None = _setting(
        None,
        "Table with a row a study, or a patient where it lacks study_column, relative to data_dir; null: further "
        "columns of the labels table.",
    )
    columns: dict[str, Literal["numeric", "categorical"]] | list[str] = _setting(
        [], "Column → numeric or categorical; a list: as their cells are; []: the network is given no table."
    )
    missing: Literal["ignore", "indicator"] = _setting(
        "ignore",
        "indicator: the network is told which values are missing, which often stands for the hospital.",
    )
