"""report.html and predictions.csv: what a reader is told, and that names from files stay text."""

import csv
import io
import math
import re
from html import unescape

import numpy as np
import pytest

from evaluation.evaluation_folder import draw_figures, make_folder
from evaluation.operating_points import OperatingPoint
from evaluation.predictions_table import predictions_csv
from evaluation.report import About, calibration_text, report_html, threshold_text
from evaluation.results import compare_scores, evaluate_scores
from evaluation.scored_split import BootstrapSettings, ScoredSplit

DRAWN = True  # see blank_figures in tests/conftest.py

FEW = BootstrapSettings(draws=30)
ABOUT = About("run on test", {"data": "<b>here</b>"}, ["Beware & look."], ["A note."])


def scored_split(names: tuple[str, ...] = ("Mass", "Hernia"), rows: int = 80) -> ScoredSplit:
    """The last class has no positives."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (rows, len(names))).astype(float)
    targets[:, -1] = 0
    scores = 1 / (1 + np.exp(-rng.normal(size=targets.shape) - targets))
    mask = rng.random(targets.shape) < 0.9
    return ScoredSplit(scores, targets, mask, [f"p{n // 2}" for n in range(rows)], names)


def results_of(scored: ScoredSplit, **columns: list[str]) -> dict:
    thresholds = (0.5,) * (len(scored.class_names) - 1) + (math.nan,)
    return evaluate_scores(scored, OperatingPoint(thresholds, "youden", "val", 50), columns, FEW)


def rows_of(page: str) -> list[list[str]]:
    """The text of every table row's cells."""
    rows = re.findall(r"<tr.*?</tr>", page, re.S)
    return [[re.sub(r"<[^>]*>", " ", cell).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in rows]


def test_undefined_is_shown_as_undefined():
    results = results_of(scored_split())
    page = report_html(results, ABOUT, {})
    hernia = next(row for row in rows_of(page) if row and row[0] == "Hernia")
    assert hernia[1] == "0" and hernia[3:5] == ["–", "–"], "AUROC, average precision"
    mass = next(row for row in rows_of(page) if row and row[0] == "Mass")
    auroc = results["classes"][0]["figures"]["auroc"]
    assert mass[3].split() == [f"{auroc['value']:.3f}", f"{auroc['low']:.3f}", "to", f"{auroc['high']:.3f}"]
    assert "mean of 1" in page and "1 of 2 classes" in page and "not in the means: Hernia." in page
    assert "nan" not in page.lower().replace("financial", "")


def test_names_facts_warnings_and_notes_are_text():
    name = "<img src=x onerror=alert(1)>{{ 7 * 7 }}"
    page = report_html(results_of(scored_split((name, "b"))), ABOUT, {})
    assert "<img" not in page and "<b>here" not in page and "Beware &amp; look." in page
    assert name in unescape(page) and "49" not in re.sub(r"[\d.]*49[\d.]*", "", page)


def test_no_control_character_of_a_name_reaches_the_page():
    name = "a\x1b]0;title\x07\u202eb\u2028c\x9b31m\ud800"
    about = About(name, {name: name}, [name], [name])
    results = results_of(scored_split((name, "b")), **{name: [name, "M"] * 40})
    page = report_html(results, about, {})
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029\ud800]", page)
    assert page.count("\\x1b]0;title\\x07\\u202eb") >= 8
    page.encode()


def test_a_comparison_and_groups_have_their_tables():
    scored = scored_split()
    results = results_of(scored, sex=["F", "M"] * 40)
    results["comparison"] = compare_scores(scored, scored.probabilities[::-1].copy(), "other <i>model</i>", FEW)
    one = results["comparison"]["classes"][0]
    one["p"], one["p_holm"] = 0.0123, 1e-9
    page = report_html(results, ABOUT, {})
    row = next(row for row in rows_of(page) if len(row) == 9 and row[0] == "Mass")
    assert row[7:] == ["0.0123", "&lt; 0.0001"]
    assert row[3:5] == [f"{one['auroc']:.3f}", f"{one['other_auroc']:.3f}"]
    assert "other &lt;i&gt;model" in page and [r[0] for r in rows_of(page) if len(r) == 7].count("F") == 3
    gap = results["subgroups"][0]["gap"]
    assert f"<b>{gap['auroc']['value']:.3f}</b>" in page and f"the best group ({gap['best']})" in page


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("classes", [1, 4])
def test_figures_are_drawn_for_any_number_of_classes(classes, exclusive):
    names = tuple(f"c{k}" for k in range(classes + 1))
    scored = scored_split(names, 40)
    if exclusive:
        targets = np.eye(classes + 1)[np.arange(40) % (classes + 1)]
        fractions = scored.probabilities / scored.probabilities.sum(axis=1, keepdims=True)
        mask = np.ones_like(scored.mask)
        scored = ScoredSplit(fractions, targets, mask, scored.patients, names, exclusive=True)
    figures = draw_figures(
        scored, [0.5] * classes + [math.nan], results_of(scored, sex=["F"] * 40), scored.probabilities
    )
    assert {"classes", "roc", "pr", "calibration", "confusion", "histograms", "subgroup 0"} == set(figures)
    assert all(figure.axes for figure in figures.values())


def test_the_area_under_the_drawn_steps_is_the_average_precision():
    scored = scored_split(("Mass", "Nodule", "Hernia"))
    results = results_of(scored)
    figures = draw_figures(scored, [0.5, 0.5, math.nan], results, None)
    assert len(figures["pr"].axes) >= 2
    for k, axes in enumerate(figures["pr"].axes[:2]):
        recall, precision = axes.lines[1].get_xdata(), axes.lines[1].get_ydata()
        area = -np.sum(np.diff(recall) * np.asarray(precision)[:-1])
        assert area == pytest.approx(results["classes"][k]["figures"]["average_precision"]["value"], abs=1e-12)
        dot = axes.lines[2].get_xydata()[0]
        figure = results["classes"][k]["figures"]
        assert dot == pytest.approx([figure["sensitivity"]["value"], figure["ppv"]["value"]])
        dot = figures["roc"].axes[k].lines[2].get_xydata()[0]
        assert dot == pytest.approx([1 - figure["specificity"]["value"], figure["sensitivity"]["value"]])


def test_a_confusion_matrix_holds_the_counts():
    scored = scored_split()
    results = results_of(scored)
    figure = draw_figures(scored, [0.5, math.nan], results, None)["confusion"]
    cells = [int(text.get_text().split("\n")[0].replace(",", "")) for text in figure.axes[0].texts]
    confusion = results["classes"][0]["confusion"]
    assert cells == [confusion["tn"], confusion["fp"], confusion["fn"], confusion["tp"]]
    assert [text.get_text() for text in figure.axes[1].texts] == ["no threshold"]


def test_an_exclusive_matrix_counts_the_most_probable_class():
    fractions = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.7, 0.2], [0.4, 0.3, 0.3]])
    targets = np.eye(3)[[0, 1, 2, 2]]
    scored = ScoredSplit(fractions, targets, np.ones((4, 3), bool), list("abcd"), ("x", "y", "z"), exclusive=True)
    figure = draw_figures(scored, [0.5] * 3, results_of(scored), None)["confusion"]
    cells = [int(text.get_text().split("\n")[0]) for text in figure.axes[0].texts]
    assert cells == [1, 0, 0, 0, 1, 0, 1, 1, 0] and "2 of 4 right (50.0%)" in figure.get_suptitle()


def test_where_thresholds_and_calibration_come_from_is_said():
    results = results_of(scored_split())
    assert "chosen on the val split by the rule 'youden'" in threshold_text(results)
    assert "flattered" not in threshold_text(results)
    assert "flattered" in threshold_text({**results, "split": "val"})
    assert "0.5, not chosen" in threshold_text({**results, "threshold_rule": "0.5, not chosen"})
    assert "no calibration" in calibration_text(results)
    fitted = {"method": "platt", "reasons": ["", "no positives"]}
    assert "platt scaling" in calibration_text({**results, "calibration": fitted})
    assert "Hernia (no positives)" in calibration_text({**results, "calibration": fitted})


def test_predictions_read_back_in_nine_digits():
    scored = scored_split(('a,"b"', "c\nd"), 30)
    text = predictions_csv(scored, [f"{n}.png" for n in range(30)], ["-x"] * 30, ["test"] * 30)
    rows = list(csv.reader(io.StringIO(text, newline="")))
    heads = ["image", "patient_id", "split", 'probability a,"b"', "probability c\nd", 'label a,"b"', "label c\nd"]
    assert rows[0] == heads and {row[1] for row in rows[1:]} == {"'-x"}
    np.testing.assert_allclose(np.array([row[3:5] for row in rows[1:]], float), scored.probabilities, rtol=5e-9)
    known = np.array([[cell != "" for cell in row[5:]] for row in rows[1:]])
    np.testing.assert_array_equal(known, scored.mask)


def test_an_evaluation_on_other_data_has_a_folder_of_its_own(tmp_path):
    assert make_folder(None, tmp_path, "test", None) == tmp_path / "evaluation-test"
    assert make_folder(None, tmp_path, "all", "/data/nih.npz") == tmp_path / "evaluation-all-nih"
    assert make_folder(str(tmp_path / "x" / "y"), tmp_path, "test", "z").is_dir()
