"""The metadata's `input`: what it says, and that its schema lies beside the page that explains it."""

import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from data.readers.images import _LUMA
from data.transforms.images import Preprocess
from data.transforms.volumes import VolumePreprocess
from deployment.preparation import LUMA, AnyInput, describe_input, schema

ROOT = Path(__file__).resolve().parents[2]
PAGE, SCHEMA = ROOT / "docs" / "export.md", ROOT / "docs" / "export_input.schema.json"
ADAPTER = TypeAdapter(AnyInput)
CASES = {
    "colour": Preprocess((32, 48), 3, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4], "letterbox"),
    "grey": Preprocess((32, 48), 1, [0.5], [0.2]),
    "volume": VolumePreprocess((8, 32, 48), 1, [0.5], [0.2], None, [-1000, 400]),
    "spaced": VolumePreprocess((8, 32, 48), 3, [0.5], [0.2], [3, 1, 1], None),
}


@pytest.mark.parametrize("name", CASES)
def test_all_that_a_preprocessing_has_is_said_and_read_back(name):
    preprocess = CASES[name]
    described = describe_input(preprocess.as_dict())
    assert ADAPTER.validate_json(described.model_dump_json()) == described
    found, given = described.model_dump(mode="json"), dict(preprocess.as_dict())
    if "resize_mode" in given:
        assert found["resize"]["mode"] == given.pop("resize_mode")
        assert found["jpeg"]["leaves_at_least"] == [64, 96]
    assert found.items() >= given.items()
    assert len(found["layout"]) == 2 + len(preprocess.size) and found["channels"] == preprocess.channels


def test_slots_of_studies_are_an_axis():
    assert describe_input(CASES["grey"].as_dict(), studies=True).layout == ("N", "V", "C", "H", "W")


def test_what_is_not_an_input_is_refused():
    described = json.loads(describe_input(CASES["grey"].as_dict()).model_dump_json())
    for wrong in ({"kind": "films"}, {"channels": 2}, {"more": 1}, {"value_range": None}):
        with pytest.raises(ValidationError):
            ADAPTER.validate_python({**described, **wrong})


def test_grey_of_a_colour_is_what_the_reader_makes():
    assert tuple(_LUMA.tolist()) == LUMA and sum(LUMA) == 65536


def test_the_schema_that_lies_beside_the_page_is_todays():
    """Else write what `schema` gives into it."""
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == json.loads(schema())
    assert SCHEMA.name in PAGE.read_text(encoding="utf-8")
