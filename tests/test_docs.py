"""The pages say what is there: the map's length, files, names and order of data's wings, and all links."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_imports import imported
from utils.runs import files as run_files

ROOT = Path(__file__).resolve().parents[1]
MAP = ROOT / "docs" / "ARCHITECTURE.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
# But for those that name what was, and files of sketches that were thrown away.
TODAY = [path for path in PAGES if path.name not in ("CHANGELOG.md", "structure.md")]
SUFFIXES = ("py", "md", "yaml", "yml", "txt", "toml", "json", "j2", "pth")
_FILE = re.compile(rf"[\w./*-]*\w\.(?:{'|'.join(SUFFIXES)})\b")
_FOLDER = re.compile(r"(?:[\w.]+/)+(?=[\s`.,:)]|$)")
FOLDERS = {path.relative_to(ROOT).parent for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
# What a run's folder holds, and what a training leaves beside it.
WRITTEN = {value for name, value in vars(run_files).items() if name.isupper()} | {"metrics.json", "environment.json"}


def sources() -> Iterator[Path]:
    for folder in {path.parts[0] for path in FOLDERS if path.parts}:
        yield from (ROOT / folder).rglob("*.py")
    yield from ROOT.glob("*.py")


def tree_of(text: str) -> str:
    """The listing of folders and files."""
    return text.split("```\n")[1]


def listed(tree: str) -> Iterator[tuple[str, str]]:
    """(folder, file in it) for each file of the listing: the folder that begins its line or an earlier one.

    Indented folders are inside the last one that is not.
    """
    top = folder = ""
    for line in tree.splitlines():
        first = re.match(r"( {0,2})((?:\w+/ )+)", line + " ")
        if first:
            top = top if first[1] else first[2].split()[0]
            folder = top + first[2].split()[0] if first[1] else top
        yield from ((folder, name) for name in re.findall(r"[\w/.]+\.(?:py|md)\b", line))


def missing_files(text: str) -> list[str]:
    """Files and folders that a page in the form of the map names and that are not there."""
    tree = tree_of(text)
    missing = [folder + name for folder, name in listed(tree) if not (ROOT / folder / name).is_file()]
    names = {path.name for path in sources()}
    for quoted in re.findall(r"`([^`\n]+)`", text.replace(tree, "")):
        for name in _FILE.findall(quoted):
            there = (ROOT / name).is_file() or ("/" not in name and name in names | WRITTEN)
            missing += [] if there else [name]
        for name in _FOLDER.findall(quoted) + ([quoted] if re.fullmatch(r"\w+(/\w+)+", quoted) else []):
            missing += [] if (ROOT / name).is_dir() else [name]
    return missing


def unknown_names(text: str) -> list[str]:
    """Identifiers in backticks of which a part is written in no source; tests are none."""
    read = [path.read_text(encoding="utf-8") for path in sources() if path.relative_to(ROOT).parts[0] != "tests"]
    words = {word for source in read for word in re.findall(r"\w+", source)}
    quoted = re.findall(r"`([A-Za-z_][\w.]*)(?:\([\w, ]*\))?`", text)
    return [name for name in quoted if not name.endswith(SUFFIXES) and not set(name.split(".")) <= words]


def wing_levels(text: str) -> list[list[str]]:
    """[['labels', 'readers'], ['study'], …] of the map's sentence on the wings of data."""
    sentence = re.search(r"the wings of `data`.*?: (.*?)\.\n", text, re.DOTALL)
    assert sentence, "the map says no order of the wings"
    return [re.findall(r"\w+", level) for level in sentence[1].split(";")]


def upward_imports(levels: list[list[str]]) -> list[str]:
    """Imports of a wing of data, or a file beside them, from one that does not stand on an earlier level."""
    level_of = {wing: number for number, level in enumerate(levels) for wing in level}
    found = []
    for path in (ROOT / "data").rglob("*.py"):
        wing = path.relative_to(ROOT / "data").with_suffix("").parts[0]
        for module, line in imported(ast.parse(path.read_text(encoding="utf-8")), "data"):
            other = module.split(".")[1] if module.startswith("data.") else wing
            if other != wing and level_of.get(other, 99) >= level_of.get(wing, -1):
                found.append(f"{path.relative_to(ROOT)}, line {line}: {module}")
    return found


def test_the_map_is_one_page():
    assert len(MAP.read_text(encoding="utf-8").splitlines()) <= 150


def test_every_file_of_the_map_is_there():
    text = MAP.read_text(encoding="utf-8")
    assert len(list(listed(tree_of(text)))) > 100 and missing_files(text) == []


def test_every_file_of_a_folder_that_the_map_lists_whole_is_in_it():
    """training/ is listed file by file: what is new there has its place in the map."""
    found = {name for folder, name in listed(tree_of(MAP.read_text(encoding="utf-8"))) if folder == "training/"}
    assert found == {path.name for path in (ROOT / "training").glob("*.py")} - {"__init__.py"}


def test_every_name_of_the_map_is_in_the_sources():
    assert unknown_names(MAP.read_text(encoding="utf-8")) == []


def test_the_wings_of_data_are_ordered_as_the_map_says():
    levels = wing_levels(MAP.read_text(encoding="utf-8"))
    there = {path.with_suffix("").name for path in (ROOT / "data").iterdir() if not path.name.startswith((".", "__"))}
    there -= {path.name for path in (ROOT / "data").iterdir() if path.is_dir() and not (path / "__init__.py").is_file()}
    assert {wing for level in levels for wing in level} == there
    assert upward_imports(levels) == []


def test_the_checks_find_what_they_look_for():
    text = (
        "```\ntraining/  ema.py: x; gone.py\n  deep/  a.py\ndata/  study.py\n```\n"
        "`lost.py`, `data/nowhere/`, `last.pth`, `utils/batch.py`, `utils/cellar`, `yonder.json`, "
        "`Config.resolve`, `Config.dissolve`, `train(config, resumed)`\n"
    )
    assert missing_files(text) == [
        "training/gone.py",
        "training/deep/a.py",
        "lost.py",
        "data/nowhere/",
        "utils/cellar",
        "yonder.json",
    ]
    assert unknown_names(text) == ["Config.dissolve"]
    assert upward_imports([["sources"], ["labels"]])


@pytest.mark.parametrize("page", PAGES, ids=[path.relative_to(ROOT).as_posix() for path in PAGES])
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", TODAY, ids=[path.relative_to(ROOT).as_posix() for path in TODAY])
def test_modules_and_tests_that_a_page_names_are_there(page):
    """Paths like tests/x/test_y.py, and modules that are run by python -m."""
    text = page.read_text(encoding="utf-8")
    folders = "|".join(sorted({path.parts[0] for path in FOLDERS if path.parts}))
    paths = re.findall(rf"(?<![\w/.-])((?:{folders})/[\w/]+\.(?:py|yaml))\b", text)
    paths += [name.replace(".", "/") for name in re.findall(rf"python -m ((?:{folders})[\w.]*\w)", text)]
    there = [(ROOT / path).exists() or (ROOT / f"{path}.py").is_file() for path in paths]
    assert [path for path, found in zip(paths, there, strict=True) if not found] == []
