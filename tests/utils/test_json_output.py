"""With --log-format json every line is an object, whoever writes it and however."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import LIMIT_S
from utils.json_output import JsonOutput, active, json_line
from utils.log_options import asked_logging

ROOT = Path(__file__).resolve().parents[2]
# All ways in which something gets onto a terminal, in a script that ends as {end} says.
CHATTY = """
import argparse, ctypes, logging, multiprocessing, os, subprocess, sys, threading, warnings
from utils.arguments import Parser
from utils.command_line import run_script, show
from configs.errors import DataError

def work():
    options = Parser(prog="chatty").parse_args()
    logging.getLogger("train").info("logged, \\u80ba")
    show("a result\\nof two lines")
    print("printed by a library"); print("and this", file=sys.stderr); print('{{"an": "object"}}')
    warnings.warn("a warning\\nof two lines")
    ctypes.CDLL(None).dprintf(2, b"from C\\n")
    os.write(1, b"not text \\xff\\n")
    subprocess.run([sys.executable, "-c", "print('a child')"])
    child = multiprocessing.get_context("fork").Process(target=logging.getLogger("worker").warning, args=("forked",))
    child.start(); child.join()
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start(); thread.join()
    from utils.progress import Progress
    bar = Progress(3, "images", "bar", every=1)
    bar.advance(3, loss="0.1"); bar.close()
    os.write(1, b"without an end")
    {end}
sys.exit(run_script(work))
"""


def chatter(end: str, *words: str, together: bool = False) -> tuple[int, list[dict], list[dict]]:
    """(exit code, objects on stdout, objects on stderr); together: one stream for both."""
    err = subprocess.STDOUT if together else subprocess.PIPE
    command = [sys.executable, "-c", CHATTY.format(end=end), "--log-format", "json", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=err, timeout=LIMIT_S)
    return done.returncode, objects(done.stdout), objects(done.stderr or b"")


def objects(output: bytes) -> list[dict]:
    found = [json.loads(line) for line in output.decode().splitlines()]
    assert all(isinstance(one, dict) for one in found)
    return found


def messages(found: list[dict]) -> set[str]:
    return {one["message"] for one in found if "message" in one}


def test_every_line_of_every_origin_is_an_object():
    code, out, err = chatter("raise DataError('no images')")
    assert code == 2
    assert messages(out) >= {"a result\nof two lines", "printed by a library", "not text \\xff", "a child"}
    assert "without an end" in messages(out)
    assert {"an": "object"} in out
    assert messages(err) >= {"logged, 肺", "and this", "from C", "forked", "images  3/3  loss 0.1"}
    assert [one["level"] for one in err if one["message"] == "no images"] == ["ERROR"]
    assert [one["level"] for one in err if "a warning\n  of two lines" in one["message"]] == ["WARNING"]
    assert any("ZeroDivisionError" in message for message in messages(err))
    whole = {"time", "level", "logger", "message"}
    assert all(one.keys() == whole for one in [*out, *err] if one != {"an": "object"})


def test_one_stream_for_both_and_a_failure_of_ours():
    code, out, _ = chatter("raise RuntimeError('a mistake')", together=True)
    (found,) = (one["message"] for one in out if one.get("level") == "CRITICAL")
    assert code == 1 and "RuntimeError: a mistake" in found


def test_a_wrong_command_line_is_one_object():
    code, out, err = chatter("pass", "--nonsense")
    assert (code, out) == (2, [])
    assert [(one["level"], one["message"]) for one in err] == [("ERROR", "unrecognized arguments: --nonsense")]


def test_streams_and_descriptors_are_as_before(capfd):
    before = sys.stdout, sys.stderr
    with JsonOutput():
        assert active()
        with JsonOutput():
            print("inside")
        print("still")
    assert not active() and (sys.stdout, sys.stderr) == before
    print("text")
    os.write(2, b"text\n")
    out, err = capfd.readouterr()
    *lines, last = out.splitlines()
    assert (last, err) == ("text", "text\n") and [json.loads(line)["message"] for line in lines] == ["inside", "still"]


def test_a_reader_that_leaves_ends_nothing():
    command = f"{sys.executable} -c '{{}}' --log-format json | true; exit ${{PIPESTATUS[0]}}"
    work = "import sys; from utils.command_line import *; "
    work += "sys.exit(run_script(lambda: [show(str(i)) for i in range(9999)] and 3))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command.replace("{}", work)], cwd=ROOT, env=environment, timeout=LIMIT_S)
    assert done.returncode == 3


@pytest.mark.parametrize(
    "words, style",
    [
        ("", "text"),
        ("--log-format json", "json"),
        ("--log-format=json --set LOGGING.format=text", "json"),
        ("--log-fo json", "json"),
        ("--set TRAIN.epochs=1 logging.format=json", "json"),
        ("--set LOGGING.format=json LOGGING.format=text", "text"),
        ("--log-format xml", "text"),
        ("--config over.yaml", "json"),
        ("--config over.yaml --log-format text", "text"),
        ("--config over.yaml --set LOGGING.format=text", "text"),
        ("--config gone.yaml", "text"),
        ("--config broken.yaml", "text"),
        ("--log-format", "text"),
    ],
)
def test_the_format_is_known_before_the_command_line_is(words, style, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("logging: {format: json}")
    Path("over.yaml").write_text("base: base.yaml\nTRAIN: {epochs: nonsense}")
    Path("broken.yaml").write_text("LOGGING: [")
    assert asked_logging(words.split()) == (style, None)


def test_a_line_has_time_level_logger_and_message():
    found = json.loads(json_line("INFO", "a", 'quoted "é" \n', 0.0))
    assert found == {
        "time": "1970-01-01T00:00:00.000+00:00",
        "level": "INFO",
        "logger": "a",
        "message": 'quoted "é" \n',
    }
