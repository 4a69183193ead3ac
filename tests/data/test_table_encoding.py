"""What a network is given of a table follows from the training studies and from nothing else."""

import json

import numpy as np
import pytest

from configs.errors import CheckpointError, DataError
from data.clinical_table import CategoricalColumn, ClinicalTable, NumericColumn
from data.table_encoding import TableEncoding, check_same_table

NAN = float("nan")
TRAINING = [0, 1, 2, 3, 4, 5]
AGES = np.array([40.0, 50.0, NAN, 70.0, 44.0, 61.0, 55.0, 90.0])
SEXES = ("F", "M", "f", "", "M", "X", "F", "D")


def table_of(ages=AGES, sexes=SEXES, has_row=None) -> ClinicalTable:
    rows = np.ones(len(ages), bool) if has_row is None else np.array(has_row)
    return ClinicalTable((NumericColumn("age", np.array(ages, np.float64)), CategoricalColumn("sex", sexes)), rows)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()


def test_statistics_are_numpys_of_the_training_rows():
    encoding = TableEncoding.fit(table_of(), TRAINING)
    known = AGES[[0, 1, 3, 4, 5]]
    age, sex = encoding.columns
    assert (age.mean, age.std, age.low, age.high, age.known) == (known.mean(), known.std(), 40, 70, 5)
    assert (sex.categories, sex.counts, sex.known) == (("f", "M"), (2, 2), 5)
    values, mask = encoding.encode(table_of())
    np.testing.assert_allclose(values[[0, 7], 0], ((AGES[[0, 7]] - known.mean()) / known.std()), rtol=1e-6)
    assert values[:, 1].tolist() == [1, 2, 1, 0, 2, 0, 1, 0]
    assert mask.tolist() == [[bool(not np.isnan(a)), bool(s)] for a, s in zip(AGES, SEXES)]
    assert values.dtype == np.float32 and not np.isnan(values).any() and (values[~mask] == 0).all()


def test_other_studies_change_nothing_however_they_look():
    """STUDIES 5 j: 1e6 in every other cell, and a new category there."""
    ages, sexes = AGES.copy(), list(SEXES)
    ages[6:], sexes[6:] = 1e6, ["new", "new"]
    one, other = TableEncoding.fit(table_of(), TRAINING), TableEncoding.fit(table_of(ages, tuple(sexes)), TRAINING)
    assert one == other
    first, second = one.encode(table_of()), other.encode(table_of(ages, tuple(sexes)))
    assert all(same(a[:6], b[:6]) for a, b in zip(first, second))


def test_the_order_of_studies_changes_nothing():
    order = np.random.default_rng(1).permutation(6)
    one, other = TableEncoding.fit(table_of(), TRAINING), TableEncoding.fit(table_of(), order)
    assert one.columns[1] == other.columns[1] and abs(one.columns[0].mean - other.columns[0].mean) < 1e-12


def test_values_far_beyond_are_clipped_and_told_and_so_are_new_categories():
    encoding = TableEncoding.fit(table_of(), TRAINING)
    other = table_of([98.6, NAN, 1e300, -1e300], ("D", "X", "F", "m"))
    values, _ = encoding.encode(other)
    assert values[:, 0].tolist() == [pytest.approx(45.6 / np.sqrt(122.4)), 0, 5, -5]
    far, never = encoding.notes(other, "val")
    assert (
        "3 of 3 values of 'age'" in far
        and "from -1e+300 to 1e+300" in far
        and "40 to 70" in far
        and "98.6" in far
        and "unit" in far
    )
    assert "2 of 4 studies have categories of 'sex'" in never and "'D' (1)" in never and "val" in never
    assert encoding.notes(table_of(), "train")[0].startswith("train: 1 of 7 values of 'age'")


def test_a_column_that_is_unknown_everywhere_is_told():
    encoding = TableEncoding.fit(table_of(), TRAINING)
    (note,) = encoding.notes(table_of([NAN, NAN], ("F", "M")), "val")
    assert "'age' has no value for any of 2 studies" in note


@pytest.mark.parametrize(
    ("ages", "sexes", "named"),
    [
        ([50.0] * 6, SEXES[:6], "'age' (always 50)"),
        ([NAN] * 6, SEXES[:6], "'age' (no known value)"),
        (AGES[:6], ("F",) * 5 + ("f",), "'sex' (always 'F')"),
        (AGES[:6], tuple("abcdef"), "'sex' (6 categories, none in 2 studies)"),
        (AGES[:6], ("",) * 6, "'sex' (no known value)"),
        ([1e308, -1e308, 1e308, 0, 0, 0], SEXES[:6], "deviation is no number"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_columns_from_which_nothing_can_be_learnt_are_refused_by_name(ages, sexes, named):
    with pytest.raises(DataError, match="nothing can be learnt") as error:
        TableEncoding.fit(table_of(ages, sexes), TRAINING)
    assert named in str(error.value)


def test_constant_in_training_alone_is_constant():
    with pytest.raises(DataError, match="always 50"):
        TableEncoding.fit(table_of([50.0] * 6 + [60.0, 70.0]), TRAINING)


def test_indicators_say_what_is_missing_of_studies_that_have_a_row():
    has_row = [True] * 7 + [False]
    ages = [*AGES[:7], NAN]
    encoding = TableEncoding.fit(table_of(ages, SEXES[:7] + ("",), has_row), TRAINING, "indicator")
    assert encoding.names == ("age", "sex", "age is missing", "sex is missing")
    assert encoding.model_columns == {
        "age": "numeric",
        "sex": 2,
        "age is missing": "numeric",
        "sex is missing": "numeric",
    }
    values, mask = encoding.encode(table_of(ages, SEXES[:7] + ("",), has_row))
    assert values[:, 2].tolist() == [0, 0, 1, 0, 0, 0, 0, 0] and mask[:, 2].tolist() == has_row
    plain = TableEncoding.fit(table_of(), TRAINING)
    assert plain.model_columns == {"age": "numeric", "sex": 2}


def test_a_checkpoint_brings_it_back():
    for missing in ("ignore", "indicator"):
        encoding = TableEncoding.fit(table_of(), TRAINING, missing)
        assert TableEncoding.from_dict(json.loads(json.dumps(encoding.as_dict()))) == encoding


@pytest.mark.parametrize("damage", [{"columns": 3}, {"missing": "x"}, {"indicators": ["height"]}, {"studies": None}])
def test_a_damaged_record_is_refused(damage):
    with pytest.raises(CheckpointError, match="its table"):
        TableEncoding.from_dict(TableEncoding.fit(table_of(), TRAINING).as_dict() | damage)


def test_a_standard_deviation_of_zero_is_refused():
    record = TableEncoding.fit(table_of(), TRAINING).as_dict()
    record["columns"][0]["std"] = 0.0
    with pytest.raises(CheckpointError):
        TableEncoding.from_dict(record)


def test_data_without_a_column_of_the_model_are_refused_by_name():
    encoding = TableEncoding.fit(table_of(), TRAINING)
    with pytest.raises(DataError, match="have no sex"):
        encoding.encode(ClinicalTable(table_of().columns[:1], np.ones(8, bool)))
    swapped = ClinicalTable((CategoricalColumn("age", SEXES), table_of().columns[1]), np.ones(8, bool))
    with pytest.raises(DataError, match="'age' as categorical, not numeric"):
        encoding.encode(swapped)


def test_no_studies_and_no_columns():
    encoding = TableEncoding.fit(table_of(), TRAINING)
    assert [part.shape for part in encoding.encode(table_of([], ()))] == [(0, 2), (0, 2)]
    nothing = ClinicalTable((), np.ones(3, bool))
    assert [part.shape for part in TableEncoding.fit(nothing, [0]).encode(nothing)] == [(3, 0), (3, 0)]


def test_a_resumed_run_has_the_table_it_was_trained_with():
    encoding = TableEncoding.fit(table_of(), TRAINING)
    check_same_table(json.loads(json.dumps(encoding.as_dict())), encoding)
    check_same_table(None, None)
    with pytest.raises(DataError, match=r"columns age, of 6 and 6 training studies"):
        check_same_table(encoding.as_dict(), TableEncoding.fit(table_of([41.0, *AGES[1:]]), TRAINING))
    for saved, now in ((None, encoding), (encoding.as_dict(), None)):
        with pytest.raises(DataError, match="age, sex"):
            check_same_table(saved, now)
    with pytest.raises(CheckpointError):
        check_same_table("age", encoding)
