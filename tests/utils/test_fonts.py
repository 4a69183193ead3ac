"""Letters that a font lacks: escapes that cannot be mistaken, fonts that are found, and one word about it."""

import logging
import warnings

import numpy as np
import pytest

from utils import fonts
from utils.figures import encoded, new_figure, panel_title, write_figure
from utils.fonts import display_names, drawable, set_fonts

DRAWN = True  # see blank_figures in tests/conftest.py


@pytest.fixture(autouse=True)
def forget():
    for one in (fonts._families, fonts._installed, fonts._tell_once):
        one.cache_clear()
    yield
    for one in (fonts._families, fonts._installed, fonts._tell_once):
        one.cache_clear()


@pytest.fixture
def no_other_font(monkeypatch):
    monkeypatch.setattr(fonts, "_installed", lambda: ())


def test_letters_without_a_font_are_codes_with_a_number(no_other_font):
    assert drawable("Mass ± Größe") == "Mass ± Größe"
    assert display_names(["肺炎", "气胸", "Mass"]) == ["1: \\u80ba\\u708e", "2: \\u6c14\\u80f8", "Mass"]
    assert drawable("a\x1b[31mb\u200b") == "a\\x1b[31mb\\u200b"


def test_no_two_names_look_alike(no_other_font):
    long = "Atelectasis of the left lower lobe with effusion"
    composed, apart = "\u00e9", "e\u0301"
    for names in (["肺炎" * 20 + "一", "肺炎" * 20 + "二"], [long + " A", long + " B"], [composed, apart], ["a", "a "]):
        for longest in (None, 24, 48):
            found = display_names(names, longest)
            shown = {fonts.wrap(name, longest // 2, 2) if longest else name for name in found}
            assert len(shown) == len(names), found
            assert longest is None or all(len(name) <= longest + 4 for name in found)


def test_what_to_install_is_said_once(no_other_font, caplog):
    with caplog.at_level(logging.WARNING, "figures"):
        for name in ("肺炎", "气胸", "肺炎"):
            drawable(name)
    assert len(caplog.records) == 1 and "fonts-noto-cjk" in caplog.text


def test_a_font_that_has_the_letters_is_given_to_the_text(monkeypatch):
    """STIX has a letter that DejaVu has not: it stands for any font of the system."""
    from matplotlib.font_manager import FontProperties, findfont

    stix = findfont(FontProperties("STIXGeneral"))
    letters = [chr(c) for c in range(0x2000, 0x3000) if chr(c).isprintable()]
    letter = min(fonts._drawn_by(stix, letters) - fonts._drawn_by(findfont(FontProperties()), letters))
    monkeypatch.setattr(fonts, "_installed", lambda: (("STIXGeneral", stix),))
    assert display_names([letter]) == [letter]
    figure = new_figure(3, 3)
    axes = figure.subplots()
    panel_title(axes, letter)
    axes.set_yticks([0], [letter])
    set_fonts(figure)
    assert axes.title.get_fontfamily()[-1] == "STIXGeneral" == axes.get_yticklabels()[0].get_fontfamily()[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert encoded(figure, "png").startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_same_figure_gives_the_same_bytes(kind, no_other_font, tmp_path):
    def draw():
        figure = new_figure(3, 3)
        axes = figure.subplots()
        axes.plot(np.arange(5), np.arange(5) ** 2)
        axes.set_title("Pneumonia 肺炎")
        return figure

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = encoded(draw(), kind), encoded(draw(), kind)
        write_figure(draw(), tmp_path / f"figure.{kind}")
    assert first == second == (tmp_path / f"figure.{kind}").read_bytes()
    if kind == "svg":
        assert b">Pneumonia \\u80ba\\u708e</text>" in first and b"<dc:date>" not in first
