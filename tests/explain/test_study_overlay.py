"""Figures of all views of a study, drawn: panels, titles, what is empty, what does not fit."""

import numpy as np
import pytest
from PIL import Image

from configs.errors import ExplanationError
from explain.study_overlay import DrawnView, save_alone, save_views, study_figure

DRAWN = True  # see blank_figures in tests/conftest.py
LONG = "oblique, left anterior, of the whole thorax"


def view(name: str, value: str = "", shape: tuple[int, ...] = (40, 50), empty: bool = False, **more) -> DrawnView:
    heatmap = np.zeros(shape, np.float32)
    if not empty:
        heatmap[tuple(side // 2 for side in shape)] = 1
    return DrawnView(name, value, np.full(shape, 90, np.uint8), heatmap, **more)


def shown(figure) -> list:
    return [axes for axes in figure.axes if axes.get_visible() and axes.images]


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_two_panels_a_view_called_by_kind(count):
    views = [view(f"frontal {i}", "PA", weight=None if count == 1 else i / 10) for i in range(count)]
    figure = study_figure(views, "Mass", 0.25, "s1, grad_cam")
    panels = shown(figure)
    assert len(panels) == 2 * count and sum(len(axes.images) for axes in panels) == 3 * count
    titles = [axes.get_title() for axes in panels]
    assert titles.count("heatmap") == count
    assert [t for t in titles if t != "heatmap"] == [one.title for one in views]
    assert views[-1].title == (
        "frontal 0 (PA)" if count == 1 else f"frontal {count - 1} (PA), weight {(count - 1) / 10:.2f}"
    )
    assert figure._suptitle.get_text() == "Mass: probability 0.25\ns1, grad_cam"


def test_long_names_empty_maps_and_annotations():
    views = [view(LONG, "$x$"), view("lateral", "lateral", empty=True, boxes=[(1, 2, 5, 6)])]
    figure = study_figure(views, "Mass", None)
    titles = [axes.get_title() for axes in shown(figure)]
    assert titles[0].endswith("…") and len(titles[0]) <= 28
    assert "lateral" in titles and "heatmap is empty: no place speaks for it" in titles
    assert sum(len(axes.patches) for axes in shown(figure)) == 4
    figure.canvas.draw()
    lowest = figure._suptitle.get_window_extent().y0
    assert all(axes.title.get_window_extent().y1 <= lowest for axes in shown(figure))


def test_files_of_images_volumes_and_images_that_stand_alone(tmp_path):
    save_views(tmp_path, "研究 1/2", [view("PA"), view("LL")], class_name="a/b", probability=0.5, title="t")
    (one,) = tmp_path.iterdir()
    with Image.open(one) as drawn:
        assert np.asarray(drawn.convert("RGB")).std() > 20
    volumes = [view(name, shape=(8, 9, 10)) for name in ("before", "after")]
    save_views(tmp_path / "volumes", "s" * 300, volumes, class_name="肺" * 99, probability=0.5, title="t")
    names = sorted(path.name for path in (tmp_path / "volumes").iterdir())
    assert len(names) == 2 and ["after" in name for name in names] == [True, False]
    save_alone(tmp_path / "alone", "x/y.png", [view("")], class_name="a/b", probability=0.5, title="t")
    assert next(path.name for path in (tmp_path / "alone").iterdir()).startswith("a_b_y_")


def test_what_does_not_fit_is_refused():
    with pytest.raises(ExplanationError, match="no view"):
        study_figure([], "Mass", 0.5)
    with pytest.raises(ExplanationError, match="does not lie on"):
        study_figure([DrawnView("PA", "", np.zeros((4, 5), np.uint8), np.zeros((5, 4), np.float32))], "Mass", 0.5)
