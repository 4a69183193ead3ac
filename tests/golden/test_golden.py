"""The golden runs equal their record: to the last bit on a machine like the one it was made on, else in their losses.

A change that is meant to change figures makes the record anew (`python -m tests.golden record
tests/golden/recorded.json`) and says why in its commit; `python -m tests.golden compare COMMIT` holds two versions of
the program against each other, on any machine.
"""

import copy
import json
from pathlib import Path

import pytest
import torch

from tests.golden.runs import (
    OLD_RUNS,
    RUNS,
    differences,
    digest,
    fingerprint,
    loss_differences,
    make_run,
    resume_old_run,
)

RECORDED = json.loads((Path(__file__).parent / "recorded.json").read_text())
# Rounding differs between processors and versions of torch, and AdamW's first steps enlarge it.
OTHER_MACHINE = 0.02


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("golden")


def compare(name: str, found: dict) -> None:
    expected = RECORDED["runs"][name]
    found = json.loads(json.dumps(found))
    if fingerprint() == RECORDED["fingerprint"]:
        assert differences(expected, found) == []
    else:
        assert loss_differences(expected, found, OTHER_MACHINE) == []


@pytest.mark.parametrize("name", RUNS)
def test_a_golden_run_is_as_recorded(name, folder):
    compare(name, make_run(name, folder))


@pytest.mark.parametrize("name", OLD_RUNS)
def test_a_run_of_an_earlier_program_goes_on_to_the_recorded_end(name, folder):
    compare(name, resume_old_run(name, folder))


def test_the_record_has_every_run_and_no_other():
    assert set(RECORDED["runs"]) == {*RUNS, *OLD_RUNS}


def test_one_changed_bit_is_a_difference():
    expected = RECORDED["runs"]["classic_flat"]
    changed = copy.deepcopy(expected)
    assert differences(expected, changed) == [] and loss_differences(expected, changed, 0.0) == []
    changed["metrics"][0]["train_loss"] *= 1 + 1e-15
    assert len(differences(expected, changed)) == 1 and len(loss_differences(expected, changed, 0.0)) == 1
    assert loss_differences(expected, changed, 1e-3) == []
    del changed["metrics"][1]["val_loss"]
    assert len(differences(expected, changed)) == 2 and len(loss_differences(expected, changed, 1e-3)) == 1


def test_a_digest_sees_values_shapes_types_and_names():
    weights = {"a": torch.zeros(4), "b": [torch.ones(2), 3]}
    others = [
        {"a": torch.zeros(4), "b": [torch.tensor([1.0, 1.0 + 2**-23]), 3]},
        {"a": torch.zeros(2, 2), "b": [torch.ones(2), 3]},
        {"a": torch.zeros(4, dtype=torch.int32), "b": [torch.ones(2), 3]},
        {"c": torch.zeros(4), "b": [torch.ones(2), 3]},
        {"a": torch.zeros(4), "b": [torch.ones(2), 4]},
    ]
    assert len({digest(each) for each in [weights, *others]}) == 6
    assert digest(weights) == digest(copy.deepcopy(weights))
