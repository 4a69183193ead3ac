"""Titles of classes: in reports and figures, in no file that is read again."""

import json

import numpy as np

from evaluation.operating_points import OperatingPoint
from evaluation.report import About, report_html
from evaluation.results import compare_scores, evaluate_scores
from evaluation.scored_split import BootstrapSettings, ScoredSplit
from evaluation.titles import title_of, titled_results, titled_split

NAMES, TITLES = ("pl_eff", "mass"), {"pl_eff": "胸腔积液 (pleural effusion)"}


def scored() -> ScoredSplit:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (40, 2))
    probabilities = np.clip(targets * 0.3 + rng.random((40, 2)) * 0.7, 0.01, 0.99)
    return ScoredSplit(probabilities, targets, np.ones((40, 2), bool), [str(n) for n in range(40)], NAMES)


def test_titles():
    assert [title_of(name, TITLES) for name in NAMES] == ["胸腔积液 (pleural effusion)", "mass"]
    assert titled_split(scored(), TITLES).class_names == ("胸腔积液 (pleural effusion)", "mass")
    assert titled_split(scored(), {}).class_names == NAMES


def test_every_class_of_the_results_has_its_title():
    settings = BootstrapSettings(draws=5)
    sexes = {"sex": ["F", "M"] * 20}
    split = scored()
    results = evaluate_scores(split, OperatingPoint((0.5, 0.5), "f1", "val", 9), sexes, settings)
    results["comparison"] = compare_scores(split, np.clip(split.probabilities + 0.01, 0, 1), "other", settings)
    before = json.dumps(results, ensure_ascii=False)
    titled = json.dumps(titled_results(results, TITLES), ensure_ascii=False)
    assert "pl_eff" in before and "pl_eff" not in titled
    assert titled.replace(TITLES["pl_eff"], "pl_eff") == before == json.dumps(results, ensure_ascii=False)
    page = report_html(titled_results(results, TITLES), About("x", {}), {})
    assert "胸腔积液" in page and "pl_eff" not in page
