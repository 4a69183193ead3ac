"""Command lines in the order in which people type them: every option of every script before and after the input."""

import argparse
import ast
import importlib
import io
import itertools
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from tests.waiting import LIMIT_S
from utils.arguments import Parser, Values, any_text, checkpoint, one_of, override, split_known
from utils.map_methods import HEATMAPS, OF_TABLES

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("configs", "models", "data", "training", "evaluation", "inference", "explain", "deployment", "utils")


def scripts() -> list[str]:
    """Modules that read a command line, but for measurements and tests: none of those takes a positional argument."""
    files = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]
    found = [path for path in files if path.name != "arguments.py" or path.parent.name != "utils"]
    return sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in found
        if {"Parser", "ArgumentParser"} & called(ast.parse(path.read_text(encoding="utf-8")))
    )


def called(tree: ast.Module) -> set[str]:
    functions = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {getattr(function, "attr", getattr(function, "id", "")) for function in functions}


# One that is a script's own, and one that takes a language and no option.
SCRIPTS = [name for name in scripts() if name not in ("explain.arguments", "configs.reference")] + ["explain.__main__"]


class Caught(BaseException):
    pass


def parsers(name: str, monkeypatch) -> list[argparse.ArgumentParser]:
    """The parser of a script, of one with commands each command's."""

    def catch(parser, *others):
        raise Caught(parser)

    module = importlib.import_module(name)
    with monkeypatch.context() as patch, pytest.raises(Caught) as caught:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", catch)
        patch.setattr(Parser, "parse_known_args", catch)
        getattr(module, "parse_arguments", getattr(module, "main", None))([])
    (parser,) = caught.value.args
    commands = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return [one for action in commands for one in action.choices.values()] or [parser]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to stand in, with runs and an image."""
    for name in ("run", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    (tmp_path / "image.png").touch()
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Values that an option of any text, or of a kind, is given here.
SAMPLES = {"checkpoint": ["run", "other"], "set": ["DATA.num_workers=0", "TRAIN.device=cpu"], "fixed_batch": ["4"]}


def samples(action: Values) -> list[str]:
    if action.dest in SAMPLES:
        return SAMPLES[action.dest]
    known = [name for name in action.names] or [name for name in HEATMAPS if action.takes(name)]
    return (known or ["sex", "age"])[: 1 if action.nargs == "?" else 2]


def input_of(action: argparse.Action) -> list[str]:
    return ["image.png"] if action.nargs in ("+", "*") else ["images"] if action.dest == "new" else ["run"]


def sentences(parser: argparse.ArgumentParser) -> list[tuple[list[str], list[str], dict[str, object]]]:
    """(option and values, what is needed beside it, what is expected) for each option of several values."""
    found = []
    for action in parser._actions:
        if isinstance(action, Values):
            values = samples(action)
            for number in range(0 if action.nargs == "?" else 1, len(values) + 1):
                several = action.nargs == "+"
                expected = values[:number] if several else (values[0] if number else action.const)
                if action.type and number:
                    expected = action.type(expected)
                others = [a for a in parser._actions if a.required and a.option_strings and a is not action]
                needed = [word for a in others for word in (a.option_strings[-1], samples(a)[0])]
                found.append(([action.option_strings[-1], *values[:number]], needed, {action.dest: expected}))
    return found


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_input_may_stand_before_and_after_every_option(name, here, monkeypatch):
    for parser in parsers(name, monkeypatch):
        positional = [a for a in parser._actions if not a.option_strings]
        words = [word for action in positional for word in input_of(action)]
        expected = {a.dest: input_of(a) if a.nargs in ("+", "*") else input_of(a)[0] for a in positional}
        for option, needed, value in sentences(parser):
            for order in itertools.permutations([option, needed, words]):
                options = vars(parser.parse_args([word for part in order for word in part]))
                shown = {
                    key: type(expected[key])(map(str, options[key]))
                    if isinstance(options[key], list)
                    else str(options[key])
                    for key in expected
                }
                assert shown == expected, order
                assert {key: options[key] for key in value} == value, order


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_option_takes_what_follows_without_asking(name, monkeypatch):
    """Whoever has a positional argument has no plain nargs of several values."""
    for parser in parsers(name, monkeypatch):
        greedy = [a for a in parser._actions if a.option_strings and a.nargs in ("+", "*", "?")]
        greedy = [a.dest for a in greedy if not isinstance(a, Values)]
        assert not greedy or not [a for a in parser._actions if not a.option_strings], greedy


def test_scripts_are_found():
    assert {"train", "evaluate", "predict", "export", "doctor", "cross_validate", "test_modern_models"} <= {*SCRIPTS}
    assert {"evaluation.__main__", "explain.__main__", "utils.checkpoint.__main__"} <= {*SCRIPTS}


# ---- each kind of value, and what cannot be told


def parse(*words: str, endless: bool = False) -> dict[str, object]:
    parser = Parser(prog="x", exit_on_error=True)
    parser.add_argument("input", nargs="+" if endless else None)
    parser.add_argument("--set", action=Values, takes=override, default=[])
    parser.add_argument("--method", action=Values, names=("grad_cam", "layer_cam"), checked=False, default=["none"])
    parser.add_argument("--format", action=Values, names=("csv", "json"))
    parser.add_argument("--model", action=Values, takes=checkpoint)
    parser.add_argument("--group", action=Values)
    parser.add_argument("--without", action=Values)
    parser.add_argument("--kind", action=Values, nargs="?", const="")
    parser.add_argument("--level", type=int)
    parser.add_argument("--draw", action="store_true")
    return {key: value for key, value in vars(parser.parse_args([*words])).items() if value}


@pytest.mark.parametrize(
    "words, expected",
    [
        ("--model run image.png", {"model": ["run"], "input": ["image.png"]}),
        ("--model run other image.png images", {"model": ["run", "other"], "input": ["image.png", "images"]}),
        ("--model run --model=other image.png", {"model": ["run", "other"], "input": ["image.png"]}),
        ("--model gone.pth lost.safetensors image.png", {"model": ["gone.pth", "lost.safetensors"]}),
        ("image.png --model run typo", {"model": ["run", "typo"], "input": ["image.png"]}),
        ("image.png --model run images", {"input": ["image.png", "images"]}),
        ("--draw image.png --model run", {"draw": True, "input": ["image.png"]}),
        ("--level -1 --model run -- -1 image.png", {"level": -1, "input": ["-1", "image.png"]}),
        ("--mod run image.png", {"model": ["run"], "input": ["image.png"]}),
        ("--format csv,json image.png", {"format": ["csv", "json"]}),
        ("--set A.b=1 C.d.e=x=y image.png", {"set": ["A.b=1", "C.d.e=x=y"], "input": ["image.png"]}),
        ("--method grad_cam image.png --method layer_cam", {"method": ["grad_cam", "layer_cam"]}),
        ("--method grad_cam layer_cm image.png", {"method": ["grad_cam", "layer_cm"], "input": ["image.png"]}),
        ("image.png", {"method": ["none"]}),
        ("--group sex age image.png images", {"group": ["sex", "age"], "input": ["image.png", "images"]}),
        ("--group sex --without a b images", {"group": ["sex"], "without": ["a", "b"], "input": ["images"]}),
    ],
)
def test_values_are_told_from_inputs(words, expected, here):
    found = parse(*words.split(), endless=True)
    assert {key: found.get(key) for key in expected} == expected


@pytest.mark.parametrize(
    "words, expected",
    [
        ("--group sex age run", {"group": ["sex", "age"], "input": "run"}),
        ("run --group sex age", {"group": ["sex", "age"], "input": "run"}),
        ("--group sex age --level 3 run", {"group": ["sex", "age"], "input": "run"}),
        ("--group sex run --without table", {"group": ["sex"], "without": ["table"], "input": "run"}),
        ("--group sex age --without table run", {"group": ["sex", "age"], "without": ["table"], "input": "run"}),
        ("--kind run", {"input": "run"}),
        ("--kind frontal run", {"kind": "frontal", "input": "run"}),
        ("run --kind frontal", {"kind": "frontal", "input": "run"}),
    ],
)
def test_any_text_leaves_the_last_word_where_it_is_needed(words, expected, here):
    assert {key: parse(*words.split()).get(key) for key in expected} == expected


@pytest.mark.parametrize(
    "words, endless, parts",
    [
        ("--model run image.png other", True, ["--model", "'other'", "apart"]),
        ("--model run typo", True, ["required: input", "'typo'", "does not exist"]),
        ("--model run typo lost", True, ["which of 'typo', 'lost' is input?", "--model run"]),
        ("--group sex run --without table other", False, ["which of 'run', 'other' is input?"]),
        ("--group sex age", False, ["required: input", "'age', the last value of --group"]),
        ("--group sex age view", True, ["which of 'age', 'view' is input?", "--group sex"]),
        ("--group sex run --without a images", True, ["which of 'run', 'images' is input?"]),
        ("--group sex", False, ["required: input"]),
        ("--set A.b 4 run", False, ["unrecognized arguments: run", "'4' is none of the values of --set"]),
        ("--format csv xml run", False, ["unrecognized arguments: run", "'xml'", "--format"]),
        ("--format xml run", False, ["invalid choice: 'xml'", "csv, json"]),
        ("run --unknown 3", False, ["unrecognized arguments", "--unknown"]),
    ],
)
def test_what_cannot_be_told_is_refused(words, endless, parts, here):
    with pytest.raises(SystemExit) as caught, redirect_stderr(io.StringIO()) as err:
        parse(*words.split(), endless=endless)
    message = err.getvalue().splitlines()[-1]
    assert caught.value.code == 2 and all(part in message for part in parts), message


def test_a_file_without_a_known_name_is_judged_by_its_first_bytes(tmp_path):
    kinds = {"weights": b"PK\x03\x04", "old": b"\x80\x02", "IM0001": bytes(128) + b"DICM", "table.xlsx": b"PK\x03\x04"}
    for name, content in kinds.items():
        (tmp_path / name).write_bytes(content)
    assert {name: checkpoint(str(tmp_path / name)) for name in (*kinds, "gone")} == {
        "weights": True,
        "old": True,
        "IM0001": False,
        "table.xlsx": False,
        "gone": None,
    }


def test_a_file_of_nearly_a_names_name_is_a_file(here):
    assert one_of(HEATMAPS)("grad_cma") is True
    (here / "grad_cma").touch()
    assert one_of(HEATMAPS)("grad_cma") is False and any_text("grad_cma") is None


def test_commas_are_taken_apart_where_the_parts_are_known():
    assert split_known(["sex,age", "sex, at birth", "view"], ["sex", "age", "sex, at birth"]) == [
        *("sex", "age", "sex, at birth", "view")
    ]


def test_names_of_methods_are_those_that_there_are():
    from explain.explained_study import TABLE_METHODS
    from explain.methods import METHODS

    assert {*METHODS} == {*HEATMAPS} and TABLE_METHODS == OF_TABLES


# ---- what --help says, and what it costs


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_names_the_exit_codes_the_version_and_the_log(name, monkeypatch):
    for parser in parsers(name, monkeypatch):
        text = parser.format_help()
        assert "Exit code: 0" in text and "130" in text
        assert all(option in text for option in ("--version", "--log-format", "--log-file"))


@pytest.mark.parametrize("name", [name for name in SCRIPTS if not name.startswith("test_")])
def test_help_needs_neither_torch_nor_numpy_nor_pydantic(name):
    """Half a second is not enough for them."""
    code = (
        f"import contextlib, io, sys, {name} as script\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    script.parse_arguments(['--help'])\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'PIL', 'cv2', 'scipy', 'matplotlib', 'argcomplete'}\n"
        "sys.exit(repr(heavy & {*sys.modules}) if heavy & {*sys.modules} else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
