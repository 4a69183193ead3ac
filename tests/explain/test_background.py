"""What stands in for a column: training rows, one by one; nothing for a view."""

import numpy as np
import pytest

from explain.background import Background, StudyInputs
from explain.shapley import shapley_values
from tests.explain.studies import curved, curved_study, linear_study


def test_value_is_the_mean_over_training_rows_one_by_one():
    study = curved_study(3, 2)
    study = StudyInputs(study.table, np.array([True, True, False]), np.array([True, False]), study.background)

    def outputs(table, known, there):
        return curved(*(np.concatenate([part, part[:, :1]], axis=1) for part in (table, known)), there)

    for coalition in np.array(np.meshgrid(*[[False, True]] * 5)).reshape(5, -1).T:
        expected = []
        for row, gaps in zip(study.background.rows, study.background.known):
            table, known = study.table.copy(), study.known.copy()
            for j in range(2):
                if not coalition[j]:
                    table[j], known[j] = row[j], gaps[j]
            there = coalition[3:] & [True, False]
            expected.append(outputs(table[None], known[None], there[None])[0])
        found = study.value(outputs)(coalition[None])[0]
        np.testing.assert_allclose(found, np.mean(expected, axis=0), atol=1e-12)


def test_a_value_that_only_gaps_differ_from_plays():
    known = np.array([[True], [False], [True]])
    study = StudyInputs(
        np.zeros(1), np.ones(1, bool), np.zeros(0, bool), Background.of_training(np.ones((3, 1)) * 0, known)
    )
    found = shapley_values(study.value(lambda table, known, there: 3.0 * known), study.playing)
    assert found.values[0, 0] == pytest.approx(1), "known in this study, in two of three otherwise"


def test_without_columns_that_vary_one_row_is_enough():
    study = StudyInputs(
        np.zeros(0), np.zeros(0, bool), np.ones(2, bool), Background(np.zeros((100, 0)), np.zeros((100, 0), bool))
    )
    sizes = []

    def outputs(table, known, there):
        sizes.append(len(table))
        return there @ np.array([[1.0], [2.0]])

    assert shapley_values(study.value(outputs), study.playing).values[:, 0].tolist() == [1, 2]
    assert sum(sizes) == 4


def test_rows_are_computed_in_parts_of_limited_size():
    study, _, outputs = linear_study(12, rows=100)
    sizes = []

    def counted(table, known, there):
        sizes.append(len(table))
        return outputs(table, known, there)

    shapley_values(study.value(counted), study.playing)
    assert sum(sizes) == 4096 * 100 and max(sizes) <= 8192


def test_background_is_drawn_from_training_rows():
    rows, known = np.arange(500.0)[:, None], np.ones((500, 1), bool)
    known[7] = False
    drawn = Background.of_training(rows, known, seed=1)
    assert len(drawn.rows) == 100 and len(np.unique(drawn.rows)) == 100
    assert (Background.of_training(rows, known, seed=1).rows == drawn.rows).all()
    assert (Background.of_training(rows, known, seed=2).rows != drawn.rows).any()
    assert Background.of_training(rows[:8], known[:8]).rows[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 0]
    with pytest.raises(ValueError, match="rows"):
        Background.of_training(rows[:0], known[:0])
