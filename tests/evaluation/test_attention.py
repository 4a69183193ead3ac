"""Means over regions with intervals by patient, against a slow bootstrap and the binomial."""

import numpy as np
import pytest

from evaluation.attention import attention_results, attention_sentence
from utils.intervals import proportion_interval


def test_intervals_are_about_those_of_patients_drawn_one_by_one():
    rng = np.random.default_rng(0)
    of = rng.integers(0, 120, 400)
    energy = np.clip(rng.normal(0.4, 0.1, 400) + rng.normal(0, 0.1, 120)[of], 0, 1)
    hit, area = rng.random(400) < rng.random(120)[of], rng.random(400)
    found = attention_results(energy, hit, area, [f"p{n}" for n in of])
    rows_of = {name: np.flatnonzero(of == name) for name in np.unique(of)}
    drawn = []
    for _ in range(2000):
        rows = np.concatenate([rows_of[name] for name in rng.choice(list(rows_of), len(rows_of))])
        drawn.append((energy[rows].mean(), hit[rows].mean()))
    low, high = np.percentile(np.array(drawn), (2.5, 97.5), axis=0)
    for k, (name, values) in enumerate((("energy_inside", energy), ("pointing_game", hit))):
        figure = found[name]
        assert figure["value"] == pytest.approx(values.mean())
        width = high[k] - low[k]
        assert (figure["low"], figure["high"]) == pytest.approx((low[k], high[k]), abs=0.2 * width)
    assert (found["regions"], found["patients"], found["area"]) == (400, len(rows_of), pytest.approx(area.mean()))


@pytest.mark.parametrize("hits", [0, 1, 19, 20])
def test_a_region_a_patient_is_the_binomial_and_none_and_all_have_a_width(hits):
    hit = np.arange(20) < hits
    found = attention_results(hit * 1.0, hit, np.full(20, 0.1), [f"p{n}" for n in range(20)])["pointing_game"]
    expected = proportion_interval(hits, 20)
    # The variance of sums over n patients is n / (n - 1) times the binomial's.
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=0.01)
    assert found["high"] - found["low"] > 0.1


def test_more_regions_of_the_same_patients_do_not_narrow_an_interval():
    energy, patients = np.linspace(0, 1, 12), [f"p{n}" for n in range(12)]
    once = attention_results(energy, energy > 0.5, energy, patients)
    often = attention_results(
        *[np.repeat(x, 10) for x in (energy, energy > 0.5, energy)], np.repeat(patients, 10).tolist()
    )
    for name in ("energy_inside", "pointing_game"):
        assert often[name]["value"] == pytest.approx(once[name]["value"])
        assert often[name]["low"] <= once[name]["low"] and often[name]["high"] >= once[name]["high"]


def test_one_patient_has_no_interval():
    found = attention_results([0.4, 0.6], [True, False], [0.2, 0.4], ["a", "a"])
    assert found["energy_inside"] == {"value": 0.5, "low": None, "high": None}


def test_the_sentence_says_what_an_even_map_would_have():
    found = attention_results([0.4, 0.6], [True, False], [0.2, 0.4], ["a", "b"])
    assert "energy inside 0.500" in attention_sentence(found) and "an even map: 0.300" in attention_sentence(found)
