"""Figures of columns and views: what they draw, and that every text stays in the figure and off its neighbours."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from explain.beeswarm import MAX_ROWS as MAX_BEESWARM_ROWS
from explain.beeswarm import summary_figure
from explain.figure_labels import fit, row_label, row_names, signed, width
from explain.waterfall import MAX_ROWS, waterfall_figure
from utils.figures import BLUE, ORANGE, write_figure

SHORT = ["age", "sex", "frontal"]
LONG = [
    *(f"a_very_long_name_of_a_column_of_a_hospital_information_system_number_{i}" for i in range(18)),
    "白细胞计数（十的九次方每升，入院时第一次测量的数值）",
    "C反应蛋白",
    "$x_1$ and $y",
    "=cmd|x",
    "",
    "正位",
    "侧位",
]
CLASS = "肺炎合并胸腔积液（左下肺野大片实变影伴支气管充气征，考虑细菌性肺炎可能性大，建议治疗后复查）"


def bars(figure) -> list[Rectangle]:
    return [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]


def tick_labels(figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def drawn_texts(figure) -> list[tuple[str, object]]:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    scale = figure.axes[0].get_xticklabels()  # matplotlib's own, those beyond the axis included, which are not drawn
    texts = [one for one in figure.findobj(Text) if one.get_visible() and one.get_text().strip() and one not in scale]
    return [(one.get_text(), one.get_window_extent()) for one in texts]


@pytest.mark.parametrize(("names", "class_name"), [(SHORT, "Edema"), (LONG, CLASS)], ids=["3", "25"])
@pytest.mark.parametrize("kind", ["waterfall", "summary"])
def test_texts_lie_in_the_figure_and_not_on_one_another(names, class_name, kind, tmp_path):
    rng, count = np.random.default_rng(0), len(names)
    phi = rng.normal(size=(30, count))
    title = "study 研究编号" * 20
    if kind == "waterfall":
        cells = ["12345678901234567890 mmol/l of something", "", *["肌酐" * 20] * (count - 2)]
        figure = waterfall_figure(names, cells, phi[0], -1.0, class_name=class_name, title=title)
    else:
        playing = rng.random((30, count)) < 0.8
        figure = summary_figure(names, phi, phi, playing, class_name=class_name, title=title)
    write_figure(figure, tmp_path / "figure.png")
    found, (wide, high) = drawn_texts(figure), figure.canvas.get_width_height()
    for text, box in found:
        assert min(box.x0, box.y0) >= -1 and box.x1 <= wide + 1 and box.y1 <= high + 1, text
    rows = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert all(not one.overlaps(other) for i, one in enumerate(rows) for other in rows[i + 1 :])
    axes = figure.axes[0].get_window_extent()
    assert axes.width > 0.5 * wide, "names leave room for what is drawn"


def test_waterfall_goes_from_the_base_to_the_output_in_steps():
    phi = np.array([0.3, -1.2, 0.0, 0.5])
    names, cells = ["age", "sex", "constant", "frontal"], ["63", "F", "", "PA"]
    error = np.array([0.1, 0, 0, 0])
    figure = waterfall_figure(names, cells, phi, 2.0, class_name="Edema", standard_error=error)
    steps = bars(figure)
    assert tick_labels(figure) == ["constant (missing)", "age = 63", "frontal = PA", "sex = F"]
    starts, widths = ([one.get_x() for one in steps], [one.get_width() for one in steps])
    np.testing.assert_allclose(widths, [0, 0.3, 0.5, -1.2])
    np.testing.assert_allclose(starts, [2.0, 2.0, 2.3, 2.8])
    assert [to_hex(one.get_facecolor()).upper() for one in steps[1:]] == [ORANGE, ORANGE, BLUE]
    assert "Edema: 1.60; without columns and views 2.00" in figure.get_suptitle()
    numbers = [label.get_text() for label in figure.axes[0].child_axes[0].get_yticklabels()]
    assert numbers == ["0", "+0.30", "+0.50", "−1.20"]
    assert len(figure.axes[0].containers) == 4 + 1, "one whisker"


def test_waterfall_draws_the_smallest_as_one():
    phi = np.linspace(1, -0.5, 40)
    figure = waterfall_figure([f"c{i}" for i in range(40)], ["1"] * 40, phi, 0.0, class_name="x")
    assert len(bars(figure)) == MAX_ROWS and tick_labels(figure)[0] == "26 smaller ones together"
    assert sum(one.get_width() for one in bars(figure)) == pytest.approx(phi.sum())


def test_summary_has_a_dot_per_study_that_knows():
    rng = np.random.default_rng(0)
    values, phi = rng.normal(size=(50, 3)), rng.normal(size=(50, 3)) * [0.1, 2, 1]
    values[:, 2] = np.nan
    playing = np.ones((50, 3), bool)
    playing[:20, 1] = False
    phi[:20, 1] = np.nan
    figure = summary_figure(SHORT, values, phi, playing, class_name="Edema")
    assert tick_labels(figure) == ["age", "frontal", "sex"], "the strongest on top"
    dots = [one for one in figure.axes[0].collections if isinstance(one, PathCollection)]
    x = np.concatenate([np.asarray(one.get_offsets())[:, 0] for one in dots])
    y = np.concatenate([np.asarray(one.get_offsets())[:, 1] for one in dots])
    np.testing.assert_allclose(np.sort(x), np.sort(phi[playing]))
    assert np.abs(y - y.round()).max() <= 0.4, "no dot lies in another's row"
    strengths = np.nan_to_num(np.abs(phi)).mean(axis=0)
    numbers = [label.get_text() for label in figure.axes[0].child_axes[0].get_yticklabels()]
    assert numbers == [f"{strengths[i]:.2f} · {n}" for i, n in ((0, 50), (2, 50), (1, 30))]


def test_summary_shows_the_strongest_and_says_so():
    phi = np.ones((4, 30)) * np.arange(30)
    figure = summary_figure([f"c{i}" for i in range(30)], phi, phi, phi >= 0, class_name="x")
    assert tick_labels(figure)[-1] == "c29" and len(tick_labels(figure)) == MAX_BEESWARM_ROWS
    assert "the 20 strongest of 30" in figure.get_suptitle()


def test_summary_without_anything_says_why():
    empty = np.zeros((0, 3))
    figure = summary_figure(SHORT, empty, empty, empty > 0, class_name="x")
    assert "no study has a value" in figure.axes[0].texts[0].get_text()


def test_labels():
    assert row_label("age", "63") == "age = 63" and row_label("age", "") == "age (missing)"
    assert row_label("a" * 28, "b" * 40) == f"{'a' * 28}\n= {'b' * 17}…"
    assert fit("白细胞计数", 10) == "白细胞计数" and fit("白细胞计数", 9) == "白细胞计…" and width("白a") == 3
    assert [signed(x) for x in (0.0, 0.004, -0.004, 1.005e3, -12.345)] == [
        "0",
        "+0.004",
        "−0.004",
        "+1005.00",
        "−12.35",
    ]
    assert len(set(row_names(LONG))) == len(LONG)


def test_attention_stands_beside_and_what_is_missing_is_called_so():
    """A view whose cell says what its name does is named once; no weight is shown of what is not there, or has none."""
    names, cells = ["PA", "age", "sex", "lateral"], ["PA", "63", "", ""]
    attention = np.array([1.0, 0.25, 0.75, np.nan])
    figure = waterfall_figure(
        names, cells, np.array([1.0, 0.5, 0, 0]), 0.0, class_name="Edema", attention=attention, title="s1"
    )
    assert tick_labels(figure)[::-1] == ["PA", "age = 63", "sex (missing)", "lateral (missing)"]
    numbers = [label.get_text() for label in figure.axes[0].child_axes[0].get_yticklabels()]
    assert numbers[::-1] == ["+1.00 · 1.00", "+0.50 · 0.25", "0", "0"]
    assert figure.axes[0].get_title(loc="right") == "φ · attention"
    many = [f"c{i}" for i in range(20)]
    figure = waterfall_figure(many, ["1", *[""] * 19], np.eye(20)[0], 0.0, class_name="Edema")
    assert tick_labels(figure)[0] == "6 more (missing)"
