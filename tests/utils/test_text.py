"""Text of strangers: escaped where it is shown, compared, and told apart where it looks alike."""

import ast
import logging
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest

from configs.errors import DataError
from evaluation.results_table import format_results_table
from utils.command_line import show, show_error
from utils.figures import new_figure, panel_title, png
from utils.log import JsonFormatter, TextFormatter, setup_logging
from utils.progress import Progress
from utils.text import alike_between, folded, printable, printable_lines, tell_apart, told_apart

# What a terminal acts on: colours, its title (OSC 0), the same as one C1 control, the cursor, a bell, a backspace.
CONTROLS = ["\x1b[31m", "\x1b]0;title\x07", "\x9b31m", "\x1b[2K", "\b", "\x7f", "\0", "\r", "\v", "\f", "\x85"]
# What changes the order or the number of lines that are read, without being seen.
UNSEEN = ["\u202e", "\u2066", "\u200f", "\u061c", "\u2028", "\u2029", "\u200b", "\ufeff", "\u2060", "\u00ad", "\u3164"]
HOSTILE = "Mass" + "".join(CONTROLS) + "".join(UNSEEN) + "\ud800" + "</td><script>"


def is_clean(text: str) -> bool:
    """By Unicode's own categories: no control, format character, separator of lines, surrogate."""
    return not any(unicodedata.category(mark) in ("Cc", "Cf", "Zl", "Zp", "Cs") for mark in text)


@pytest.mark.parametrize("mark", [*CONTROLS, *UNSEEN, "\n", "\t", "\ud800", "\U000e0041"])
def test_what_acts_on_a_terminal_is_escaped(mark):
    shown = printable(f"a{mark}b")
    assert is_clean(shown) and shown != "ab" and shown.startswith("a") and shown.endswith("b")


@pytest.mark.parametrize(
    "text", ["Pleural_Thickening", "肺炎", "é e\u0301", "हिन्दी", "می\u200cخواهم", "Ω ≥ 5 µm", "👩\u200d⚕"]
)
def test_letters_of_every_language_stay(text):
    assert printable(text) == text


def test_a_line_break_in_a_name_begins_no_line_of_the_log():
    record = logging.makeLogRecord({"msg": "class %r", "args": ("x",), "levelno": logging.INFO})
    record.msg, record.args = "left out: a\n12:00:00  ERROR: the disk is full\r\x1b[2Kb", ()
    lines = TextFormatter().format(record).split("\n")
    assert lines[1].startswith("  12:00:00") and is_clean("".join(lines))
    assert is_clean(JsonFormatter().format(record))


def test_own_lines_of_a_message_stay():
    assert printable_lines("'a.csv':\n  line 3: x\n  and 4 more", "  ") == "'a.csv':\n  line 3: x\n  and 4 more"


@pytest.fixture
def logging_as_before():
    root, before = logging.getLogger(), warnings.formatwarning
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], warnings.formatwarning = handlers, before
    root.setLevel(level)


def test_everything_that_is_printed_is_clean(capsys, logging_as_before):
    setup_logging()
    logging.getLogger("data").warning("left out: %s", HOSTILE)
    show(HOSTILE)
    show_error(HOSTILE)
    progress = Progress(1, HOSTILE, "plain")
    progress.advance(1, **{HOSTILE: HOSTILE})
    Progress(1, HOSTILE, "bar").close()
    sys.stderr.write(warnings.formatwarning(HOSTILE, UserWarning, "file.py", 1, ""))
    out, err = capsys.readouterr()
    # the bar itself goes back to the beginning of its line
    assert is_clean(out.replace("\n", "")) and is_clean(err.replace("\n", "").replace("\r", ""))
    assert err.count("\\x1b[31m") >= 5 and "\\x1b[31m" in out


def test_print_is_called_in_one_place():
    """What prints elsewhere prints what it has from files as it is."""
    root = Path(__file__).parents[2]
    folders = ("configs", "data", "models", "training", "evaluation", "inference", "explain", "deployment", "utils")
    paths = [*root.glob("*.py"), *(path for folder in folders for path in (root / folder).rglob("*.py"))]
    assert len(paths) > 150
    calls = {
        path.relative_to(root).as_posix()
        for path in paths
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert calls == {"utils/command_line.py", "configs/reference.py"}  # the latter has no text but our own


def test_names_in_figures_are_escaped_whoever_wrote_them():
    from matplotlib.text import Text

    figure = new_figure(3, 3)
    axes = figure.subplots()
    panel_title(axes, HOSTILE)
    axes.set_xticks([0, 1], [HOSTILE, "b"], parse_math=False)
    axes.text(0, 0, HOSTILE, parse_math=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png(figure)
    texts = [text.get_text().replace("\n", "") for text in figure.findobj(Text)]
    assert sum("\\x1b[31m" in text for text in texts) >= 3 and all(map(is_clean, texts))


def test_names_in_the_table_of_results_are_escaped():
    figure = {"value": 0.5, "low": None, "high": None}
    figures = dict.fromkeys(("auroc", "average_precision", "sensitivity", "specificity"), figure)
    one = {"name": "a\nb\x1b", "positives": 1, "negatives": 1, "figures": figures, "positive_in_training": False}
    results = {
        "classes": [{**one, "threshold_chosen": False}],
        "mean": {"figures": figures, "defined_classes": 1},
        "decision": {"rule": "thresholds", "positive_class": None},
        "threshold_rule": "youden",
        "threshold_split": "val",
    }
    lines = format_results_table(results).split("\n")
    assert len(lines) == 7 and all(map(is_clean, lines))


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ("Mass", "mass", "upper and lower case"),
        ("Mass", "Mass ", "only the second ends with a blank"),
        (" Mass", "Mass", "only the first begins with a blank"),
        ("Mass", "Mass\u00a0", "only the second ends with a blank"),
        ("é", "e\u0301", "Unicode form"),
        ("a\u200bb", "ab", "U+200B ZERO WIDTH SPACE"),
        ("ab", "ab\ufeff", "U+FEFF"),
        ("Mass", "Маss", "U+041C CYRILLIC CAPITAL LETTER EM"),
        ("O1", "01", "U+0030 DIGIT ZERO"),
        ("a b", "a\u00a0b", "U+00A0 NO-BREAK SPACE"),
        ("a b", "a_b", "U+005F LOW LINE"),
        ("a  b", "a b", "U+0020 SPACE"),
        ("１", "1", "U+FF11 FULLWIDTH DIGIT ONE"),
        ("é ", "e\u0301", "only the first ends with a blank; in Unicode form"),
    ],
)
def test_names_that_look_alike_are_told_apart(one, other, words):
    assert words in tell_apart(one, other)
    assert words in told_apart(one, other) and is_clean(told_apart(one, other))
    assert tell_apart(other, one)


@pytest.mark.parametrize(("one", "other"), [("Mass", "Mass"), ("Mass", "Nodule"), ("a", "b"), ("肺炎", "肺癌")])
def test_names_that_differ_to_the_eye_need_no_word(one, other):
    assert tell_apart(one, other) == "" and told_apart(one, other) == f"'{one}' and '{other}'"


def test_of_two_lists_of_names_those_that_look_alike_are_told():
    assert alike_between(["Nodule", "Mass "], ["Edema", "Mass"]).startswith("; 'Mass ' and 'Mass' (they differ: only")
    assert alike_between(["Nodule"], ["Mass"]) == alike_between([], ["Mass"]) == alike_between(["a"], ["a"]) == ""


def test_what_spellings_of_a_name_have_in_common():
    alike = ["Big Tumour", "big_tumour", " BIG-TUMOUR ", "Ｂig\u00a0Tumour", "big  tumour\u200b"]
    assert {folded(name) for name in alike} == {"big tumour"}
    assert folded("e\u0301") == folded("É") and folded("Mass") != folded("Masse")
    assert folded("ER-") != folded("ER") and folded("-1") != folded("1")  # a sign is no blank


def test_messages_about_classes_say_in_what_names_differ(tmp_path):
    from data.labels import nearest
    from tests.data.sources.writers import images, opened

    assert "U+041C CYRILLIC" in nearest("Маss", ["Mass", "Nodule"])
    assert nearest("Mas", ["Mass"]) == ": did you mean 'Mass'?"
    images(tmp_path, "a.png")
    with pytest.raises(DataError, match="U\\+0430 CYRILLIC SMALL LETTER A"):
        opened(tmp_path, "image,labels\na.png,Mаss\n", class_names=["Mass"])
