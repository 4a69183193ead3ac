"""Makes one package of the repository, so that nothing but `hybridmednet` lands on anybody's import path.

setuptools calls BuildPackage (pyproject.toml names it). The folders become folders of the package and the scripts its
`commands`; imports between them, found by their syntax, get the package's name in front: `from data.study import Study`
becomes `from hybridmednet.data.study import Study`. Strings that are names of modules (what is imported when it is
asked for) are rewritten likewise. Nothing else is changed.
"""

from __future__ import annotations

import ast
import atexit
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from setuptools.command.build import build
from setuptools.command.build_py import build_py

PACKAGE, COMMANDS = "hybridmednet", "commands"
# What is no part of the program.
_OTHERS = ("tests", "benchmarks", "docs", PACKAGE)
_CODE = ".py"
_LEFT_OUT = (".pyc",)


class BuildElsewhere(build):  # type: ignore[misc]  # setuptools has no types for it
    """build in a temporary folder: what is left of one in a clone would be taken for sources of it."""

    def initialize_options(self) -> None:
        """See setuptools."""
        super().initialize_options()
        self.build_base = tempfile.mkdtemp(prefix="hybridmednet-build-")
        atexit.register(shutil.rmtree, self.build_base, ignore_errors=True)


class BuildPackage(build_py):  # type: ignore[misc]  # setuptools has no types for it
    """build_py of a package that is put together from the repository."""

    def run(self) -> None:
        """Write the package into the build folder."""
        if self.editable_mode:
            raise SystemExit(
                "an editable install would put data, models, utils … on everybody's path: work in the clone itself, "
                "where `import hybridmednet` needs no install, or install without -e"
            )
        build_package(Path.cwd(), Path(self.build_lib))


def build_package(root: Path, target: Path) -> Path:
    """The package as a folder of `target`, which is made anew; its path. root: of the repository."""
    package = target / PACKAGE
    shutil.rmtree(package, ignore_errors=True)
    names, modules = new_names(root), set(dotted_names(root))
    for source, place in files(root):
        path = package / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == _CODE:
            text = rewritten(source.read_text(encoding="utf-8"), names, modules, str(source))
            path.write_text(text, encoding="utf-8")
        else:
            shutil.copyfile(source, path)
    (package / COMMANDS / "__init__.py").write_text('"""The scripts."""\n', encoding="utf-8")
    return package


def folders(root: Path) -> list[Path]:
    """Those that become folders of the package."""
    return sorted(path.parent for path in root.glob("*/__init__.py") if path.parent.name not in _OTHERS)


def scripts(root: Path) -> list[Path]:
    """Those that become its commands."""
    return sorted(path for path in root.glob("*.py") if not path.name.startswith("test_"))


def new_names(root: Path) -> dict[str, str]:
    """First part of a module's name → what it is in the package."""
    found = {folder.name: f"{PACKAGE}.{folder.name}" for folder in folders(root)}
    return found | {script.stem: f"{PACKAGE}.{COMMANDS}.{script.stem}" for script in scripts(root)}


def files(root: Path) -> Iterator[tuple[Path, Path]]:
    """(a file, its place in the package): of folders that are packages, so nothing that a run has left there."""
    for path in sorted((root / PACKAGE).glob("*.py")):
        if path.name != Path(__file__).name:
            yield path, path.relative_to(root / PACKAGE)
    for script in scripts(root):
        yield script, Path(COMMANDS) / script.name
    for folder in folders(root):
        for init in sorted(folder.rglob("__init__.py")):
            inside = (path for path in sorted(init.parent.iterdir()) if path.is_file())
            yield from ((path, path.relative_to(root)) for path in inside if path.suffix not in _LEFT_OUT)


def dotted_names(root: Path) -> Iterator[str]:
    """'data.study' of every module in these folders."""
    for source, place in files(root):
        if source.suffix == _CODE and len(place.parts) > 1 and place.parts[0] != COMMANDS:
            parts = place.with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def rewritten(text: str, names: Mapping[str, str], modules: set[str], where: str) -> str:
    """Source text whose imports are the package's. Raises ValueError for an import that cannot be told apart."""
    lines = [line.encode() for line in text.splitlines(keepends=True)]  # columns of the syntax tree count bytes
    for row, column, old, new in sorted(_replacements(ast.parse(text, where), names, modules, where), reverse=True):
        line = lines[row - 1]
        at = line.index(old.encode(), column)
        lines[row - 1] = line[:at] + new.encode() + line[at + len(old.encode()) :]
    result = b"".join(lines).decode()
    ast.parse(result, where)
    return result


def _replacements(
    tree: ast.Module, names: Mapping[str, str], modules: set[str], where: str
) -> Iterator[tuple[int, int, str, str]]:
    """(line, column from which on it is looked for, what stands there, what is to stand there)."""
    formatted = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            new = _in_package(node.module, names)
            if new is not None:
                yield node.lineno, node.col_offset + len("from"), node.module, new
        elif isinstance(node, ast.Import):
            inside = [alias for alias in node.names if _in_package(alias.name, names) is not None]
            if any(alias.asname is None for alias in inside):
                raise ValueError(f"{where}, line {node.lineno}: 'import a.b' of this program: write 'from a import b'")
            for alias in inside:
                yield alias.lineno, alias.col_offset, alias.name, _in_package(alias.name, names) or ""
        elif isinstance(node, ast.Constant) and id(node) not in formatted and _is_name_of_ours(node.value, modules):
            value = str(node.value)
            yield node.lineno, node.col_offset, value, _in_package(value, names) or ""


def _is_name_of_ours(value: object, modules: set[str]) -> bool:
    """Whether a string is the dotted name of a module that gets another one."""
    return isinstance(value, str) and "." in value and value in modules and value.partition(".")[0] != PACKAGE


def _in_package(module: str, names: Mapping[str, str]) -> str | None:
    first, dot, rest = module.partition(".")
    return None if first not in names else names[first] + dot + rest
