"""utils.runs.plots: what the figures say, that no text lies on another, and that files are whole."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread

from utils.metrics import auroc, classification_metrics
from utils.runs import plots
from utils.runs.plots import plot_roc_curves, plot_training_curves, roc_curves_figure, training_curves_figure

DRAWN = True  # see blank_figures in tests/conftest.py

# fmt: off
FINDINGS = [
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass",
    "Nodule", "Pneumonia", "Pneumothorax", "Consolidation", "Edema",
    "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
]
# fmt: on


def history_of(epochs):
    return [
        {
            "epoch": epoch,
            "train_loss": 0.2 + 0.5 / epoch,
            "val_loss": 0.25 + 0.4 / epoch,
            "mean_auroc": 0.8 - 0.001 * (epoch - 7) ** 2,
            "mean_average_precision": 0.3 - 0.1 / epoch,
            "learning_rate": 3e-4 * (1 - epoch / (epochs + 1)),
        }
        for epoch in range(1, epochs + 1)
    ]


def roc_case(classes, rows=200, names=None):
    rng = np.random.default_rng(classes)
    targets = (rng.random((rows, classes)) < np.linspace(0.4, 0.1, classes)).astype(int)
    scores = rng.normal(size=(rows, classes)) + targets
    mask = rng.random((rows, classes)) < 0.9
    return scores, targets, mask, list(names or (*FINDINGS, *(f"{name} 2" for name in FINDINGS))[:classes])


def roc_figure_of(scores, targets, mask, names, title="Validation"):
    metrics = classification_metrics(scores, targets, mask, names)
    return roc_curves_figure(scores, targets, mask, metrics, title)


def visible(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


def overlapping_texts(figure):
    """Pairs of texts, of the panels and of the figure, whose boxes cut each other when drawn."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = list(figure.texts)
    for axes in visible(figure):
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        texts += axes.get_legend().get_texts() if axes.get_legend() else []
    boxes = [
        (text.get_text(), text.get_window_extent(canvas.get_renderer()))
        for text in texts
        if text.get_text() and text.get_visible()
    ]
    width, height = canvas.get_width_height()
    outside = [(name, "edge") for name, b in boxes if min(b.x0, b.y0) < 0 or b.x1 > width or b.y1 > height]
    return outside + [
        (first, second)
        for i, (first, a) in enumerate(boxes)
        for second, b in boxes[i + 1 :]
        if a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1
    ]


@pytest.mark.parametrize("epochs", [1, 2, 30, 200])
def test_training_curves_hold_the_history(epochs):
    history = history_of(epochs)
    loss, ranking, rate = training_curves_figure(history).axes
    assert [axes.get_title() for axes in (loss, ranking, rate)] == [
        "Loss",
        "Validation AUROC and average precision",
        "Learning rate",
    ]
    drawn = ((loss, 0, "train_loss"), (loss, 1, "val_loss"), (ranking, 0, "mean_auroc"))
    for axes, line, key in (*drawn, (ranking, 1, "mean_average_precision"), (rate, 0, "learning_rate")):
        assert axes.lines[line].get_xdata().tolist() == [row["epoch"] for row in history]
        assert axes.lines[line].get_ydata().tolist() == [row[key] for row in history]


def test_best_epoch_is_marked_at_the_highest_auroc():
    ranking = training_curves_figure(history_of(20)).axes[1]
    labels = [text.get_text() for text in ranking.get_legend().get_texts()]
    assert labels == ["mean AUROC", "mean AP", "best epoch 7: AUROC 0.800"]
    assert ranking.lines[-1].get_xdata().tolist() == [7]


def test_missing_values_are_left_out():
    history = history_of(6)
    history[0]["val_loss"] = None
    history[2]["val_loss"] = math.nan
    del history[3]["val_loss"]
    for row in history:
        row["mean_auroc"] = None
    loss, ranking, _ = training_curves_figure(history).axes
    assert loss.lines[1].get_xdata().tolist() == [2, 5, 6]
    assert [text.get_text() for text in ranking.get_legend().get_texts()] == ["mean AP"]


def test_a_panel_without_values_says_so():
    figure = training_curves_figure([{"epoch": 1, "train_loss": 0.5}])
    assert [text.get_text() for text in figure.axes[1].texts] == ["no values"]
    assert [text.get_text() for text in figure.axes[2].texts] == ["no values"]


def test_an_empty_history_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no epoch to plot"):
        plot_training_curves([], tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("classes", [1, 2, 5, 14, 20])
def test_one_panel_a_class_with_its_figures_in_the_title(classes):
    scores, targets, mask, names = roc_case(classes)
    panels = visible(roc_figure_of(scores, targets, mask, names))
    assert len(panels) == classes
    for k, axes in enumerate(panels):
        known = mask[:, k]
        area = auroc(scores[known, k], targets[known, k])
        name, figure, count = axes.get_title().split("\n")
        assert (name, figure) == (names[k], f"AUROC {area:.3f}")
        assert count == f"{targets[known, k].sum()} of {known.sum()} positive"
        assert np.trapezoid(axes.lines[1].get_ydata(), axes.lines[1].get_xdata()) == pytest.approx(area)


def test_undefined_classes_say_why():
    scores, targets, mask, names = roc_case(4)
    targets[:, 0], targets[:, 1], mask[:, 2] = 0, 1, False
    figure = roc_figure_of(scores, targets, mask, names)
    words = [axes.texts[0].get_text() if axes.texts else "" for axes in visible(figure)]
    assert words == ["undefined:\nno positives", "undefined:\nno negatives", "undefined:\nno labels", ""]
    assert "AUROC –" in visible(figure)[0].get_title()
    assert "over 1 of 4 classes" in figure.get_suptitle()


def test_beyond_twenty_classes_those_with_most_positives_are_shown():
    names = [f"c{k}" for k in range(23)]
    scores, targets, mask, _ = roc_case(23)
    targets[:, [3, 8, 11]] = 0
    figure = roc_figure_of(scores, targets, mask, names)
    displayed = [axes.get_title().split("\n")[0] for axes in visible(figure)]
    assert displayed == [name for name in names if name not in ("c3", "c8", "c11")]
    assert "shown: the 20 classes with the most positives" in figure.get_suptitle()


@pytest.mark.parametrize("classes", [1, 2, 4, 14, 20])
def test_no_text_of_the_roc_panels_lies_on_another(classes):
    scores, targets, mask, names = roc_case(classes)
    targets[:, -1] = 0
    names[0] = "A finding whose name is so long that nobody would ever fit it into a title"
    assert overlapping_texts(roc_figure_of(scores, targets, mask, names)) == []


@pytest.mark.parametrize("epochs", [1, 3, 100])
def test_no_text_of_the_training_curves_lies_on_another(epochs):
    assert overlapping_texts(training_curves_figure(history_of(epochs))) == []


def test_class_names_and_titles_are_not_formulas(tmp_path):
    scores, targets, mask, _ = roc_case(2)
    names = ["$x_{", "100 % \\alpha$$"]
    metrics = classification_metrics(scores, targets, mask, names)
    plot_roc_curves(scores, targets, mask, metrics, tmp_path / "roc.png", "cost in $")
    assert (tmp_path / "roc.png").stat().st_size > 5_000


def test_shapes_that_disagree_are_refused():
    scores, targets, mask, names = roc_case(3)
    metrics = classification_metrics(scores, targets, mask, names)
    with pytest.raises(ValueError, match=r"must all be \[N, 3\]"):
        roc_curves_figure(scores[:, :2], targets, mask, metrics)


def test_files_are_readable_images_of_a_sane_size(tmp_path):
    scores, targets, mask, names = roc_case(14)
    metrics = classification_metrics(scores, targets, mask, names)
    plot_roc_curves(scores, targets, mask, metrics, tmp_path / "new folder" / "roc.png", "Validation")
    plot_training_curves(history_of(5), str(tmp_path / "curves.png"))
    for name, (smallest, largest) in {"curves.png": (400, 1700), "new folder/roc.png": (1100, 1700)}.items():
        image = imread(tmp_path / name)
        assert smallest <= min(image.shape[:2]) and max(image.shape[:2]) <= largest
        assert 0.02 < (image[..., :3].min(axis=2) < 0.95).mean() < 0.5  # neither blank nor black
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "new folder"]


def test_the_best_epoch_is_marked_by_the_figure_that_decides():
    history = [
        {"epoch": n, "val_loss": loss, "mean_auroc": 0.5 + n / 10, "per_class": [{"name": "Ring", "auroc": ring}]}
        for n, loss, ring in ((1, 0.2, 0.4), (2, 0.6, 0.9), (3, 0.5, None))
    ]
    marks = {}
    for by in ("mean_auroc", "val_loss", "Ring"):
        loss, ranking, _ = training_curves_figure(history, by).axes
        labels = [line.get_label() for axes in (loss, ranking) for line in axes.lines]
        marks[by] = [label for label in labels if label.startswith("best epoch")]
        assert ("AUROC of Ring" in labels) is (by == "Ring")
    assert marks == {
        "mean_auroc": ["best epoch 3: AUROC 0.800"],
        "val_loss": ["best epoch 1: loss 0.200"],
        "Ring": ["best epoch 2: AUROC 0.900"],
    }


def test_a_failed_write_leaves_the_old_file_and_no_scraps(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    plot_training_curves(history_of(2), path)
    before = path.read_bytes()

    class Broken:
        axes = ()

        def findobj(self, _):
            return ()

        def savefig(self, target, **_):
            target.write(b"half a pic")
            raise OSError("disk full")

    monkeypatch.setattr(plots, "training_curves_figure", lambda *_: Broken())
    with pytest.raises(OSError, match="disk full"):
        plot_training_curves(history_of(3), path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["curves.png"]


def test_pyplot_is_not_touched():
    code = (
        "import sys; from utils.runs.plots import training_curves_figure as f; assert 'matplotlib' not in sys.modules;"
        "f([{'epoch': 1, 'train_loss': 1.0}]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
