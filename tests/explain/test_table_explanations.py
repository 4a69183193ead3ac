"""The file of explanations, and the rank correlation of attention with Shapley values."""

import csv
import io
import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from explain.rank_correlation import rank_correlation
from explain.table_explanations import ExplanationRow, write_explanations
from utils.csv_cells import BYTE_ORDER_MARK, original_cell


def test_file_reads_back(tmp_path):
    rows = [
        ExplanationRow("s1", "Edema", "shapley", "age", "63", 0.123456789, 0.0),
        ExplanationRow("s1", "Edema", "lime", "=SUM(A1)", "+x", -1e-12, 0.25),
        ExplanationRow("研究,2", '肺"炎', "attention", "侧位", "", 0.0),
    ]
    path = tmp_path / "new" / "table_explanations.csv"
    write_explanations(rows, path)
    text = path.read_bytes().decode()
    assert text.startswith(BYTE_ORDER_MARK)
    header, *cells = csv.reader(io.StringIO(text.removeprefix(BYTE_ORDER_MARK), newline=""))
    assert header == ["study", "class", "method", "column_or_view", "value", "attribution", "uncertainty"]
    assert cells[0] == ["s1", "Edema", "shapley", "age", "63", "0.123456789", "0"]
    assert [original_cell(cell) for cell in cells[1]] == ["s1", "Edema", "lime", "=SUM(A1)", "+x", "-1e-12", "0.25"]
    assert cells[1][3] == "'=SUM(A1)"
    assert cells[2] == ["研究,2", '肺"炎', "attention", "侧位", "", "0", ""]


def everyone(count: int) -> np.ndarray:
    return np.ones(count, bool)


@pytest.mark.parametrize("players", [4, 8, 9, 25])
def test_rank_correlation_is_scipys(players):
    rng = np.random.default_rng(players)
    weights, phi = rng.random(players).round(1), rng.normal(size=players).round(1)
    found = rank_correlation(weights, phi, everyone(players))
    assert found.value == pytest.approx(spearmanr(weights, np.abs(phi)).statistic, abs=1e-12)
    assert found.players == players and 0 < found.p_value <= 1


def test_sign_does_not_count_and_who_does_not_play_is_left_out():
    weights, phi = np.array([0.1, 0.2, 0.0, 0.3, 0.4, np.nan]), np.array([-1.0, 2.0, 0.0, -3.0, 4.0, 9.0])
    playing = np.array([True, True, False, True, True, True])
    found = rank_correlation(weights, phi, playing)
    assert found.value == pytest.approx(1) and found.players == 4
    assert found.p_value == pytest.approx(2 / 24), "two of the 24 orders"


def test_three_players_say_little():
    assert rank_correlation(np.array([1.0, 2, 3]), np.array([1.0, 2, 3]), everyone(3)).p_value == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("weights", "phi"), [([1, 2], [1, 2]), ([0.5] * 4, [1, 2, 3, 4]), ([1, 2, 3, 4], [0] * 4), ([], [])]
)
def test_undefined(weights, phi):
    found = rank_correlation(np.array(weights, float), np.array(phi, float), everyone(len(phi)))
    assert math.isnan(found.value) and not found.defined and math.isnan(found.p_value)


def test_ties_up_to_rounding_are_ties():
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    twins = rank_correlation(weights, np.array([1.0, 0.3, 0.3 + 1e-15, 0.1]), everyone(4))
    assert twins.value == pytest.approx(spearmanr(weights, [1.0, 0.3, 0.3, 0.1]).statistic)
