"""Means over regions with intervals by patient, against a slow bootstrap."""

import numpy as np
import pytest

from evaluation.attention import attention_results, attention_sentence
from evaluation.bootstrap import draw_weights
from evaluation.scored_split import BootstrapSettings

SETTINGS = BootstrapSettings(draws=200, seed=3)


def test_intervals_are_those_of_patients_drawn_one_by_one():
    rng = np.random.default_rng(0)
    patients = [f"p{n}" for n in rng.integers(0, 9, 40)]
    energy, hit, area = rng.random(40), rng.random(40) < 0.4, rng.random(40)
    found = attention_results(energy, hit, area, patients, SETTINGS)
    names = sorted(set(patients))
    drawn = []
    for draw in range(200):
        weights = draw_weights(len(names), draw, 1, 3)[:, 0]
        rows: list[int] = []
        for name, weight in zip(names, weights):
            rows += [i for i, patient in enumerate(patients) if patient == name] * int(weight)
        drawn.append((energy[rows].mean(), hit[rows].mean()))
    low, high = np.percentile(np.array(drawn), (2.5, 97.5), axis=0)
    for k, (name, values) in enumerate((("energy_inside", energy), ("pointing_game", hit))):
        figure = found[name]
        assert figure["value"] == pytest.approx(values.mean())
        assert (figure["low"], figure["high"]) == pytest.approx((low[k], high[k]))
    assert (found["regions"], found["patients"], found["area"]) == (40, 9, pytest.approx(area.mean()))


def test_regions_of_one_patient_are_alike():
    """Each region ten times over is no more than once: the interval stays."""
    energy, patients = np.linspace(0, 1, 12), [f"p{n}" for n in range(12)]
    once = attention_results(energy, energy > 0.5, energy, patients, SETTINGS)
    often = attention_results(
        *[np.repeat(x, 10) for x in (energy, energy > 0.5, energy)], np.repeat(patients, 10), SETTINGS
    )
    assert once["energy_inside"] == pytest.approx(often["energy_inside"])


def test_the_sentence_says_what_an_even_map_would_have():
    found = attention_results([0.4, 0.6], [True, False], [0.2, 0.4], ["a", "b"], SETTINGS)
    assert "energy inside 0.500" in attention_sentence(found) and "an even map: 0.300" in attention_sentence(found)
