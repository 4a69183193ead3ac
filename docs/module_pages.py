"""A page for each package, with its modules one after another: what Sphinx makes of the docstrings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
NOT_SHOWN = ("tests", "benchmarks")  # no one imports from these


def modules_of(root: Path) -> dict[str, list[str]]:
    """Package → its public modules, by name; the scripts are the modules of ''.

    Left out: __main__, names with an underscore before them and *_private, which have no other folder's names in them.
    """
    found = {"": sorted(path.stem for path in root.glob("*.py") if not path.stem.startswith("test_"))}
    for top in sorted(path.parent for path in root.glob("*/__init__.py") if path.parent.name not in NOT_SHOWN):
        for init in sorted(top.rglob("__init__.py")):
            package = ".".join(init.parent.relative_to(root).parts)
            stems = sorted(path.stem for path in init.parent.glob("*.py"))
            public = [stem for stem in stems if not stem.startswith("_") and not stem.endswith("_private")]
            found[package] = [f"{package}.{stem}" for stem in public]
    return found


def page_of(package: str, modules: list[str]) -> str:
    """The page in reStructuredText."""
    title = package or "Scripts"
    lines = [title, "=" * len(title), ""]
    if package:
        lines += [f".. automodule:: {package}", "   :members:", "   :ignore-module-all:", ""]
    for module in modules:
        name = module.rpartition(".")[2]
        lines += [name, "-" * len(name), "", f".. automodule:: {module}", "   :members:", ""]
    return "\n".join(lines)


def write_pages(folder: Path, pages: dict[str, str]) -> None:
    """Write what differs, so that pages that are as they were are not built again; remove what is gone."""
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.rst"):
        if path.stem not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / f"{name}.rst"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def generate(app: Sphinx) -> None:
    """For Sphinx: the pages into _generated beside the guides."""
    pages = {package or "scripts": page_of(package, modules) for package, modules in modules_of(ROOT).items()}
    write_pages(Path(app.srcdir) / "_generated", pages)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", generate)
    return {"parallel_read_safe": True}
