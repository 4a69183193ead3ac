"""Groups, their figures and the gap."""

import json

import numpy as np
import pytest

from configs.errors import ConfigError
from evaluation.scored_split import BootstrapSettings, ScoredSplit
from evaluation.subgroups import group_rows, subgroup_figures
from tests.evaluation.samples import made_up
from utils.metrics import auroc, classification_metrics

SETTINGS = BootstrapSettings(draws=100, threads=1)


def sizes(column, values):
    return {name: int(rows.sum()) for name, rows in group_rows(column, values).items()}


def test_texts_are_taken_as_they_are_and_empty_is_unknown():
    assert sizes("sex", ["M", "F", "", " F ", "M", "M"]) == {"F": 2, "M": 3, "unknown": 1}
    assert sizes("sex", ["unknown", "", "F"]) == {"F": 1, "unknown": 2}
    assert list(sizes("site", ["10", "9", "b", "a"])) == ["9", "10", "a", "b"]


def test_ages_go_into_bands_dicoms_too():
    values = ["0", "17", "18", "39", "40", "64", "65", "100", "006M", "058Y", "414", "", "old"]
    expected = {"0–17": 3, "18–39": 2, "40–64": 3, "65+": 2, "unknown": 3}
    assert sizes("age", values) == sizes("Patient Age", values) == expected
    assert list(sizes("age", ["70"])) == ["65+"]


def test_numbers_go_into_quarters_where_there_are_many():
    assert sizes("view", ["1", "2", "2"]) == {"1": 1, "2": 2}
    values = [str(x) for x in range(100)] + [""]
    found = sizes("kvp", values)
    assert found == {"0 to 24": 25, "25 to 49": 25, "50 to 74": 25, "75 to 99": 25, "unknown": 1}
    ties = sizes("kvp", ["80"] * 90 + ["1", "2", "3", "4", "5", "6", "7", "8", "9", "100"])
    assert sum(ties.values()) == 100


def test_every_image_is_in_one_group():
    rng = np.random.default_rng(0)
    for column in ("age", "dose", "site"):
        values = rng.choice(["", "1", "2.5", "70", "33", "12", "5", "8", "9"], 200).tolist()
        assert (sum(rows.astype(int) for rows in group_rows(column, values).values()) == 1).all()


def test_too_many_groups_are_refused():
    with pytest.raises(ConfigError, match="'name': it has 21 different values, at most 20"):
        group_rows("name", [f"person {i}" for i in range(21)])


def split_of_two(seed=0, n=400, lift=(2.5, 0.5)):
    """Group b's scores are worse; patients have two images each."""
    rng = np.random.default_rng(seed)
    group = np.repeat(rng.choice(["a", "b"], n // 2), 2)
    targets = (rng.random((n, 3)) < 0.3).astype(float)
    scores = rng.normal(size=(n, 3)) + np.where(group == "a", *lift)[:, None] * targets
    patients = [f"p{i // 2}" for i in range(n)]
    scored = ScoredSplit(1 / (1 + np.exp(-scores)), targets, np.ones((n, 3), bool), patients, ("x", "y", "z"))
    return scored, group


def test_figures_of_a_group_are_those_of_its_images():
    scored, group = split_of_two()
    found = subgroup_figures(scored, np.full(3, 0.6), "site", group.tolist(), SETTINGS)
    json.dumps(found, allow_nan=False)
    assert {row["name"] for row in found["groups"]} == set(group.tolist()) and len(found["groups"]) == 2
    for row in found["groups"]:
        rows = group == row["name"]
        metrics = classification_metrics(
            scored.probabilities[rows], scored.targets[rows], scored.mask[rows], scored.class_names
        )
        assert row["images"] == rows.sum() and row["patients"] == rows.sum() / 2 and row["used_for_gap"]
        assert row["mean"]["figures"]["auroc"]["value"] == metrics.mean_auroc
        for k, (one, expected) in enumerate(zip(row["classes"], metrics.per_class, strict=True)):
            assert (one["name"], one["positives"], one["negatives"]) == (
                expected.name,
                expected.positives,
                expected.negatives,
            )
            figure = one["figures"]["auroc"]
            assert figure["value"] == expected.auroc and figure["low"] < figure["value"] < figure["high"]
            flagged = scored.probabilities[rows, k] >= 0.6
            assert one["figures"]["sensitivity"]["value"] == flagged[scored.targets[rows, k] == 1].mean()


def test_the_gap_is_best_minus_worst_with_its_interval():
    scored, group = split_of_two()
    gap = subgroup_figures(scored, np.full(3, 0.5), "site", group.tolist(), SETTINGS)["gap"]
    means = {
        name: np.mean(
            [auroc(scored.probabilities[group == name, k], scored.targets[group == name, k]) for k in range(3)]
        )
        for name in ("a", "b")
    }
    assert (gap["best"], gap["worst"], gap["classes"]) == ("a", "b", ["x", "y", "z"])
    assert gap["auroc"]["value"] == pytest.approx(means["a"] - means["b"], abs=1e-14)
    assert 0.1 < gap["auroc"]["low"] < gap["auroc"]["value"] < gap["auroc"]["high"] < 0.6


def test_the_gap_is_over_classes_that_both_groups_have():
    scored, group = split_of_two()
    targets = scored.targets.copy()
    targets[np.ix_(group == "b", [1])] = 0
    scored = ScoredSplit(scored.probabilities, targets, scored.mask, scored.patients, scored.class_names)
    found = subgroup_figures(scored, np.full(3, 0.5), "site", group.tolist(), SETTINGS)
    assert found["gap"]["classes"] == ["x", "z"]
    b = found["groups"][1]
    assert b["mean"]["defined_classes"] == 2 and b["classes"][1]["figures"]["auroc"]["value"] is None


def test_small_and_unknown_groups_are_listed_and_not_used():
    scored, group = split_of_two()
    values = np.where(group == "b", "", group)
    values[:20] = "c"
    found = subgroup_figures(scored, np.full(3, 0.5), "site", values.tolist(), SETTINGS)
    assert {row["name"]: row["used_for_gap"] for row in found["groups"]} == {"a": True, "c": False, "unknown": False}
    assert found["gap"] is None and "at least 20 patients" in found["note"]


def test_a_patient_in_two_groups_is_drawn_for_both():
    """Two images per patient with equal scores and labels, one in each group: no draw can tell them apart.

    What remains of the interval is that each group's own reaches further down than up.
    """
    scored, _ = split_of_two()
    p, y = np.repeat(scored.probabilities[::2], 2, 0), np.repeat(scored.targets[::2], 2, 0)
    twins = ScoredSplit(p, y, scored.mask, scored.patients, scored.class_names)
    gap = subgroup_figures(twins, np.full(3, 0.5), "view", ["AP", "PA"] * 200, SETTINGS)["gap"]
    assert gap["auroc"]["value"] == 0 and gap["auroc"]["low"] == pytest.approx(-gap["auroc"]["high"])
    apart = subgroup_figures(scored, np.full(3, 0.5), "view", ["AP", "PA"] * 200, SETTINGS)["gap"]["auroc"]
    assert gap["auroc"]["high"] < 0.25 * (apart["high"] - apart["low"])


def test_masks_are_kept():
    scored = made_up(4, images=200, patients=90)
    found = subgroup_figures(scored, np.full(4, 0.5), "all", ["same"] * 200, SETTINGS)["groups"][0]
    assert [row["positives"] + row["negatives"] for row in found["classes"]] == scored.mask.sum(axis=0).tolist()
