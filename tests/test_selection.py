"""--part and --minutes: the parts together are all cases, and what the time does not allow is named, not failed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.selection import TimeLimit, parse_minutes, parse_part, part_of, summarize

ROOT = Path(__file__).resolve().parents[1]
CASES = """
import pytest

@pytest.mark.parametrize("number", range(12))
def test_number(number):
    print(f"ran number {number}.")
"""


def pytest_of(folder: Path, *options: str) -> tuple[int, str]:
    """Exit code and output of a pytest of its own in this folder."""
    plugins = ["-p", "xdist", "-p", "tests.selection", "-p", "no:cacheprovider"]  # others take seconds to be imported
    command = [sys.executable, "-m", "pytest", *plugins, "-rP", *options, "."]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (tmp_path / "test_cases.py").write_text(CASES, encoding="utf-8")
    return tmp_path


def ran(output: str) -> list[int]:
    return sorted(int(number) for number in re.findall(r"ran number (\d+)\.", output))


@pytest.mark.parametrize("processes", [(), ("-n", "2", "--dist", "worksteal")])
def test_each_case_is_in_exactly_one_part(folder, processes):
    found = [pytest_of(folder, "--part", f"{number}/3", *processes) for number in (1, 2, 3)]
    assert [code for code, _ in found] == [0, 0, 0]
    parts = [ran(output) for _, output in found]
    assert all(parts) and sorted(number for part in parts for number in part) == list(range(12))
    for number, (_, output) in enumerate(found, 1):
        assert f"part {number} of 3: {12 - len(parts[number - 1])} cases are in the other parts" in output


def test_the_parts_are_about_equally_large_and_stay_what_they_are():
    names = [f"tests/models/test_backbones.py::test_shapes[resnet{number}-cbam]" for number in range(600)]
    sizes = [sum(part_of(name, 6) == part for name in names) for part in range(1, 7)]
    assert sum(sizes) == 600 and min(sizes) > 60
    assert part_of("tests/test_kills.py::test_x", 6) == 5


@pytest.mark.parametrize("processes", [(), ("-n", "2")])
def test_an_empty_part_is_no_error_and_an_empty_whole_is(folder, processes):
    empty = next(number for number in range(1, 1000) if all(part_of(name, 999) != number for name in names_of(folder)))
    code, output = pytest_of(folder, "--part", f"{empty}/999", *processes)
    assert code == 0 and "12 cases are in the other parts" in output
    assert pytest_of(folder, "--part", f"{empty}/999", "-k", "no_such_case", *processes)[0] == 5


def names_of(folder: Path) -> list[str]:
    _, output = pytest_of(folder, "--collect-only", "-q")
    names = [line for line in output.splitlines() if "::" in line]
    assert len(names) == 12
    return names


@pytest.mark.parametrize("processes", [(), ("-n", "2")])
def test_what_the_time_does_not_allow_is_named_and_fails_nothing(folder, processes):
    code, output = pytest_of(folder, "--minutes", "0", *processes)
    assert code == 0 and ran(output) == []
    assert "12 cases not run: the 0 minutes were over: test_cases.py 12" in output
    assert "12 skipped in" in output.splitlines()[-1]
    code, output = pytest_of(folder, "--minutes", "60", *processes)
    assert code == 0 and ran(output) == list(range(12)) and "not run" not in output


def test_a_case_begins_until_the_time_is_over():
    now = [1000.0]
    limit = TimeLimit(minutes=15, start=1000.0, clock=lambda: now[0])
    limit.pytest_runtest_setup()
    now[0] += 15 * 60 - 1
    limit.pytest_runtest_setup()
    now[0] += 1
    with pytest.raises(pytest.skip.Exception, match="the 15 minutes were over"):
        limit.pytest_runtest_setup()


def test_the_summary_counts_by_file():
    names = ["b.py::one", "a.py::one", "b.py::two[x::y]"]
    assert summarize(names, "not run") == "3 cases not run: a.py 1, b.py 2"


@pytest.mark.parametrize("text", ["0/6", "7/6", "3", "x/6", "1/", "-1/6", "/"])
def test_a_part_that_is_none(text):
    with pytest.raises(Exception, match="K/N"):
        parse_part(text)


@pytest.mark.parametrize("text", ["-1", "x", "nan", "inf", ""])
def test_minutes_that_are_none(text):
    with pytest.raises(Exception, match="minutes are a number"):
        parse_minutes(text)


def test_a_wrong_option_is_a_usage_error(folder):
    code, output = pytest_of(folder, "--part=7/6")
    assert code == 4 and "a part is written K/N" in output
