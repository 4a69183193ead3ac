"""Which modules the reference shows, and that the pages which point into it point at something."""

import ast
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from docs.module_pages import ROOT, modules_of, page_of, write_pages


def test_public_modules_are_shown_and_private_ones_are_not():
    shown = modules_of(ROOT)
    modules = {module for found in shown.values() for module in found}
    assert {"hybridmednet.trainer", "configs.default_config", "models.hybrid_med_net", "train"} <= modules
    assert "utils.torch_private" not in modules and "explain.__main__" not in modules
    assert not {"tests", "benchmarks", "test_modern_models"} & {*shown, *modules}
    assert not any(part.startswith("_") for module in modules for part in module.split("."))


@pytest.mark.parametrize("page", ["api.md", "api_zh.md"])
def test_names_of_the_reference_are_defined_where_it_says(page):
    names = re.findall(r"^   ~([a-z_]+(?:\.\w+)+)$", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert len(names) > 40
    for name in names:
        module, _, member = name.rpartition(".")
        path = ROOT / module.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        defined = ast.parse(path.read_text(encoding="utf-8")).body
        assert member in {getattr(node, "name", None) for node in defined}, name


def test_pages_are_written_only_where_they_differ(tmp_path):
    folder = tmp_path / "_generated"
    write_pages(folder, {"data": page_of("data", ["data.study"]), "gone": "x"})
    before = (folder / "data.rst").stat().st_mtime_ns
    write_pages(folder, {"data": page_of("data", ["data.study"])})
    assert [path.name for path in folder.iterdir()] == ["data.rst"]
    assert (folder / "data.rst").stat().st_mtime_ns == before
    assert ".. automodule:: data.study" in (folder / "data.rst").read_text(encoding="utf-8")


class _Loaded(HTMLParser):
    """What a page fetches when it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.addresses.append(given.get("src") or "")
        if tag == "link" and given.get("rel") in ("stylesheet", "preload", "icon"):
            self.addresses.append(given.get("href") or "")


@pytest.mark.slow
def test_the_pages_are_built_without_a_warning_and_load_nothing_from_elsewhere(tmp_path):
    """As `make docs` does; 0 of its pages need the network."""
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-j",
        "auto",
        "-b",
        "html",
        "-d",
        str(tmp_path / "trees"),
    ]
    built = subprocess.run(
        [*command, "docs", str(tmp_path / "html")], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert built.returncode == 0, built.stdout + built.stderr
    pages = sorted((tmp_path / "html").rglob("*.html"))
    assert {"index.html", "index_zh.html", "api.html", "data_zh.html", "_generated"} <= {
        path.relative_to(tmp_path / "html").parts[0] for path in pages
    }
    for path in pages:
        loaded = _Loaded()
        loaded.feed(path.read_text(encoding="utf-8"))
        assert [address for address in loaded.addresses if "//" in address] == [], path
    trainer = (tmp_path / "html" / "_generated" / "hybridmednet.html").read_text(encoding="utf-8")
    assert 'id="hybridmednet.trainer.Trainer"' in trainer and "train_loader" in trainer
