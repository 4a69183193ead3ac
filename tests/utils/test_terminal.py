"""Output that fails, and goes on failing, changes neither results nor the exit code."""

import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import ConfigError
from utils.command_line import run_script, say_error, show
from utils.terminal import tolerant_output

ROOT = Path(__file__).resolve().parents[2]
CHATTY = """
import sys
from utils.command_line import run_script, show
def work():
    for number in range(20000):
        show(f"line {number} of \\u80ba\\u708e")
        print("and a word", file=sys.stderr)
    open(sys.argv[1], "w").write("done")
    return 3
sys.exit(run_script(work))
"""


def chatty(tmp_path: Path, shell: str, **environment: str) -> tuple[int, str, str]:
    """A script that prints much and then writes a file, within a shell's line; its exit code is 3."""
    done = tmp_path / "done"
    command = shell.format(script=f"{sys.executable} -c '{CHATTY}' {done}")
    variables = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environment}
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, env=variables, capture_output=True, timeout=120)
    assert done.read_text() == "done"
    return result.returncode, result.stdout.decode(), result.stderr.decode()


@pytest.mark.parametrize("reader", ["head -n 1", "true"])
def test_a_reader_that_leaves_ends_nothing(reader, tmp_path):
    code, out, err = chatty(tmp_path, f"{{script}} 2>&1 | {reader}; exit ${{{{PIPESTATUS[0]}}}}")
    assert code == 3 and len(out.splitlines()) <= 1 and "Traceback" not in out + err


def test_a_disk_that_takes_no_output_ends_nothing(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is not there")
    code, _, err = chatty(tmp_path, "{script} > /dev/full 2> /dev/full")
    assert code == 3 and err == ""


def test_a_terminal_without_chinese_letters_shows_codes(tmp_path):
    code, out, _ = chatty(tmp_path, "{script} 2> /dev/null", PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    assert code == 3 and out.startswith("line 0 of \\u80ba\\u708e\n") and len(out.splitlines()) == 20000


def test_streams_are_as_before(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    with tolerant_output():
        print("肺")
    assert sys.stdout is stream and stream.errors == "strict"
    stream.seek(0)
    assert stream.read() == "\\u80ba\n"


def test_a_script_leaves_streams_and_says_one_line(capsys):
    assert run_script(lambda: show("result")) == 0

    def fails(error: BaseException) -> int:
        def work() -> None:
            raise error

        return run_script(work)

    assert fails(ConfigError("no such key")) == 2
    assert fails(OSError(24, "Too many open files", "/a/b")) == 2
    assert fails(OSError(28, "No space left on device")) == 2
    assert fails(MemoryError()) == 2
    assert fails(KeyboardInterrupt()) == 130
    out, err = capsys.readouterr()
    assert out == "result\n"
    assert err.splitlines() == [
        "error: no such key",
        "error: too many open files ('/a/b'): raise the limit (ulimit -n), or use fewer data workers "
        "(DATA.num_workers, --num-workers)",
        "error: no space left on device: free some space, or write elsewhere",
        "error: out of memory (no more is known): use a smaller batch or fewer data workers",
        "interrupted",
    ]


def test_where_an_error_of_the_machine_was_raised_is_in_the_debug_log(caplog):
    with caplog.at_level(logging.DEBUG, "utils.command_line"):
        assert say_error(OSError(5, "Input/output error")) == 2
    assert caplog.records[0].exc_info is not None
