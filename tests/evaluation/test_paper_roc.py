"""One ROC for a paper: what is in its legend, how large it is, and what is refused."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from configs.errors import EvaluationError
from evaluation.__main__ import main
from evaluation.paper_roc import MOST_CURVES, PAPER_DPI, class_curves, paper_roc_figure, read_evaluation
from utils.figures import encoded

DRAWN = True  # see tests/conftest.py
NAMES = ["Mass", "Pleural thickening", "$x$, 肺", "none"]


def evaluation(folder: Path, seed: int = 0, images: int = 80) -> Path:
    """A folder as evaluate.py leaves it, of four classes of which the last has no positives."""
    from evaluation.curves import curves_of
    from evaluation.scored_split import scored_by_task
    from utils.decision import Task

    rng = np.random.default_rng(seed)
    targets = (rng.random((images, 4)) < (0.4, 0.3, 0.5, 0)).astype(np.float32)
    scores = np.clip(targets * 0.3 + rng.random((images, 4)) * 0.7, 0, 1)
    groups, known = [str(n) for n in range(images)], np.ones((images, 4), bool)
    scored = scored_by_task(Task(tuple(NAMES), False, None), scores, targets, known, groups, "test", [])
    figures = [None if k == 3 else float(roc_auc_score(targets[:, k], scores[:, k])) for k in range(4)]
    ends = [None if value is None else round(value - 0.1, 3) for value in figures]
    classes = [
        {"name": name, "figures": {"auroc": {"value": value, "low": low, "high": low and low + 0.15}}}
        for name, value, low in zip(NAMES, figures, ends)
    ]
    folder.mkdir(parents=True)
    (folder / "curves.json").write_text(json.dumps(curves_of(scored, [0.5] * 4, None)))
    content = {"split": "test", "images": images, "interval": {"level": 0.95}, "classes": classes}
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_legend_has_auroc_with_its_interval(tmp_path):
    curves, results = read_evaluation(evaluation(tmp_path / "run" / "evaluation-test").parent)
    drawn = class_curves(curves, results)
    figure = paper_roc_figure(drawn, 0.95)
    values = [one["figures"]["auroc"] for one in results["classes"][:3]]
    expected = [f"{n} {v['value']:.3f} ({v['low']:.3f}–{v['high']:.3f})" for n, v in zip(NAMES, values)]
    assert legend(figure)[:2] == expected[:2] and "$x$" in legend(figure)[2] and len(drawn) == 3
    assert figure.legends[0].get_title().get_text() == "AUROC (95% interval)"
    for curve, value in zip(drawn, values):
        area = np.trapezoid(curve.true_positive_rate, curve.false_positive_rate)
        assert area == pytest.approx(value["value"], abs=1e-9), "the curve is that of the figure beside it"
    lines = figure.axes[0].get_lines()[1:]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 3


@pytest.mark.parametrize("width, millimetres", [("single", 89), ("double", 183)])
def test_it_is_as_wide_as_a_column_at_300_dpi(width, millimetres, tmp_path):
    drawn = class_curves(*read_evaluation(evaluation(tmp_path / "e")))
    figure = paper_roc_figure(drawn, 0.95, width)
    with Image.open(BytesIO(encoded(figure, "png", PAPER_DPI))) as image:
        assert image.width == pytest.approx(millimetres / 25.4 * 300, abs=2)
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    sizes = {text.get_fontsize() for text in [*figure.legends[0].get_texts(), *figure.axes[0].get_xticklabels()]}
    assert sizes == {7}


def test_a_class_a_folder_and_a_number_that_are_not_there(tmp_path):
    folder = evaluation(tmp_path / "e")
    curves, results = read_evaluation(folder)
    with pytest.raises(EvaluationError, match="'none' has no curve: it lacks positives or negatives"):
        class_curves(curves, results, ["none"])
    with pytest.raises(EvaluationError, match="'Nodule' is none of its classes"):
        class_curves(curves, results, ["Nodule"])
    with pytest.raises(EvaluationError, match=r"run evaluate\.py first"):
        read_evaluation(tmp_path)
    with pytest.raises(EvaluationError, match="can be told apart"):
        paper_roc_figure(class_curves(curves, results, ["Mass"]) * (MOST_CURVES + 1), 0.95)
    (folder / "metrics.json").write_text('{"classes": [{}]}')
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_evaluation(folder)


def test_several_runs_in_one_figure(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, other = evaluation(tmp_path / "a"), evaluation(tmp_path / "b", seed=1)
    assert main([str(one), str(other), "--classes", "Mass", "--output", "roc.svg"]) == 0
    assert "AUROC (95% interval)" in Path("roc.svg").read_text(encoding="utf-8")
    out = capsys.readouterr().out
    values = [
        json.loads((one / "metrics.json").read_text())["classes"][0]["figures"]["auroc"]["value"]
        for one in (one, other)
    ]
    for name, value in zip("ab", values):
        assert f"\n{name} {value:.3f} (" in out
    assert main([str(one), "--labels", "x", "y", "z", "--output", "roc.pdf"]) == 0
    assert Path("roc.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    "words, error",
    [
        ("a b", "name the class that they are compared in"),
        ("a b --classes Mass none", "one class for several folders"),
        ("a c --classes Mass", "different images cannot be compared"),
        ("a --labels x --classes Mass,none", "has no curve"),
        ("a --labels x", "1 for 3 curves"),
        ("a --output roc.jpg", "ends in .png, .svg, .pdf"),
        ("gone", "there is no curves.json"),
    ],
)
def test_what_makes_no_figure_is_refused(words, error, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluation(tmp_path / "a"), evaluation(tmp_path / "b", 1), evaluation(tmp_path / "c", images=60)
    assert main(words.split()) == 2
    assert error in capsys.readouterr().err and not list(tmp_path.glob("roc.*"))
