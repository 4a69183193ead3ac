"""The figures of the sources, on a small tree whose figures are known."""

import pytest

from benchmarks.structure import BEFORE, CHANGES, ROOT, Longest, Step, page, structure_of, verdicts_of

FILES = {
    "run.py": "import low.one\n",
    "configs/__init__.py": "",
    "utils/__init__.py": "from configs import x\n",
    "low/__init__.py": "from . import one\n",
    "low/one.py": "from typing import Any\n\n\ndef f(x: Any) -> Any:\n    import utils\n\n    return x\n",
    "high/__init__.py": "",
    "tests/__init__.py": "from typing import Any\nx: Any\n",
}


def tree(folder, **more):
    for name, text in {**FILES, **more}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_what_is_counted(tmp_path):
    found = structure_of(tree(tmp_path))
    assert (found.files, found.lines, found.untyped) == (6, 10, 2)
    assert found.longest_file == Longest(7, "low/one.py")
    assert found.longest_function == Longest(4, "low/one.py: f")
    assert found.upward_imports == ()


@pytest.mark.parametrize(
    ("name", "text", "module"),
    [
        ("high/a.py", "def f():\n    from low.one import f\n", "low.one"),
        ("utils/a.py", "import high\n", "high"),
        ("configs/a.py", "import utils.b\n", "utils.b"),
        ("low/a.py", "import run\n", "run"),
    ],
)
def test_imports_that_run_upwards(tmp_path, name, text, module):
    assert structure_of(tree(tmp_path, **{name: text})).upward_imports == (f"{name}: {module}",)


def test_the_page_has_each_figure_and_each_change():
    now = structure_of(ROOT)
    assert now.files > 200 and now.upward_imports == ()
    text = page(now, Step(45, 11))
    assert len(CHANGES) == 5 and all(f"| {one.what} | {one.before} |" in text for one in CHANGES)
    assert f"| {now.untyped} |" in text and "45 in 11 files | met" in text


def test_what_is_missed_is_said():
    worse = Step(BEFORE.step.functions, BEFORE.step.files)
    assert [enough for *_, enough in verdicts_of(BEFORE.structure, worse)] == [False, False, True, True, False]
