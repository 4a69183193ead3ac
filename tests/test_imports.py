"""Who may import whom, and where weights are read: by the import statements and calls of the sources."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A folder may import itself and these.
ALLOWED = {
    "configs": set(),
    "models": {"configs", "utils"},
    "data": {"configs", "utils"},
    "training": {"configs", "utils"},
    "evaluation": {"configs", "utils"},
    "inference": {"configs", "utils"},
    "explain": {"configs", "utils"},
    "deployment": {"configs", "utils"},
    "utils": {"configs"},
    "benchmarks": {
        "configs",
        "models",
        "data",
        "training",
        "evaluation",
        "inference",
        "explain",
        "deployment",
        "utils",
    },
}
# What Python users import: like a script it may import every folder, and it hands on what scripts have.
ALLOWED["hybridmednet"] = {*ALLOWED, "hybridmednet"}
# Packages that a folder has no business with, wherever the import stands.
FORBIDDEN_PACKAGES = {
    "models": {"yaml", "PIL", "cv2", "pydicom"},
    "training": {"yaml", "timm"},
    "data": {"timm", "yaml"},
    "evaluation": {"yaml", "timm", "torch"},
    "inference": {"yaml", "timm"},
    "explain": {"yaml", "timm"},
    "deployment": {"yaml", "timm"},
}
# They have to answer --help at once.
SCRIPTS = (
    "train",
    "evaluate",
    "predict",
    "export",
    "explain.__main__",
    "inference.serve.__main__",
    "doctor",
    "cross_validate",
)
# A script whose steps are the recipes of others.
STEPS = {"cross_validate": {"train", "evaluate"}, "doctor": {"train"}}
SOURCES = sorted(
    path
    for folder in [*ALLOWED, "."]
    for path in (ROOT.glob("*.py") if folder == "." else (ROOT / folder).rglob("*.py"))
    if not path.name.startswith("test_")
)
NAMES = [path.relative_to(ROOT).as_posix() for path in SOURCES]


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(tree: ast.Module, package: str = "") -> Iterator[tuple[str, int]]:
    """(dotted module, line) of every import, those inside functions and calls of import_module too.

    package: the dotted package the file is in, for relative imports.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or "", node.lineno
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            yield ".".join([*parents, *([node.module] if node.module else [])]), node.lineno
        elif isinstance(node, ast.Call) and dotted(node.func).endswith(("import_module", "__import__")) and node.args:
            yield str(getattr(node.args[0], "value", "")), node.lineno


def dotted(node: ast.AST) -> str:
    """'torch.load' of an attribute or a name; '' of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def loads_and_saves(tree: ast.Module) -> list[str]:
    """Uses of torch.load, torch.save and of names imported from torch for them, as 'torch.load, line 3'."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and dotted(node) in ("torch.load", "torch.save"):
            found.append(f"{dotted(node)}, line {node.lineno}")
        elif isinstance(node, ast.ImportFrom) and node.module in ("torch", "torch.serialization"):
            found += [f"{node.module}.{a.name}, line {node.lineno}" for a in node.names if a.name in ("load", "save")]
    return found


def unsafe_loads(tree: ast.Module) -> list[int]:
    """Lines with weights_only=… that is not the constant True, or pickle.load(s)."""
    lines = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        safe = [k.value for k in node.keywords if k.arg == "weights_only"]
        if any(getattr(value, "value", None) is not True for value in safe):
            lines.append(node.lineno)
        if dotted(node.func) == "torch.load" and not safe:
            lines.append(node.lineno)
        if dotted(node.func).removesuffix("s") in ("pickle.load", "dill.load", "joblib.load"):
            lines.append(node.lineno)
    return lines


def test_the_checks_find_what_they_look_for():
    tree = ast.parse(
        "import os.path\nfrom a.b import c\ndef f():\n    from . import x\n    from ..data import y\n"
        "    importlib.import_module('z')\n"
    )
    assert [name for name, _ in imported(tree, "models.backbones")] == [
        "os.path",
        "a.b",
        "models.backbones",
        "models.data",
        "z",
    ]
    tree = ast.parse(
        f"torch.load(p, weights_only={False})\ntorch.load(p)\ntorch.load(p, weights_only=True)\n"
        "torch.load(p, weights_only=flag)\npickle.loads(b)\nf(weights_only=0)\nfrom torch import save as s\n"
    )
    assert sorted(unsafe_loads(tree)) == [1, 2, 4, 5, 6]
    assert len(loads_and_saves(tree)) == 5


def test_every_folder_has_rules():
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert folders == set(ALLOWED)
    assert len(SOURCES) > 20


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_imports_go_one_way(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    if len(parts) == 1 or parts[-1] == "__main__":
        # Scripts (a `__main__.py` too) may import every folder, but not each other: what two need belongs into one.
        scripts = {other.stem for other in ROOT.glob("*.py")} - {path.stem} - STEPS.get(path.stem, set())
        wrong = [(name, line) for name, line in imported(tree_of(path)) if name.partition(".")[0] in scripts]
    else:
        folder = parts[0]
        forbidden = set(ALLOWED) - ALLOWED[folder] - {folder} | FORBIDDEN_PACKAGES.get(folder, set())
        forbidden |= {other.stem for other in ROOT.glob("*.py")} if folder != "hybridmednet" else set()
        package = ".".join(parts[:-1])
        wrong = [(name, line) for name, line in imported(tree_of(path), package) if name.partition(".")[0] in forbidden]
    assert not wrong, f"{path.relative_to(ROOT)} must not import {wrong}"


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_torch_files_are_read_and_written_in_one_place(path):
    if path == ROOT / "utils" / "checkpoint" / "files.py":
        assert loads_and_saves(tree_of(path)), "this test looks at the wrong file"
    else:
        assert not loads_and_saves(tree_of(path))


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_nothing_that_is_read_can_run_code(path):
    assert not unsafe_loads(tree_of(path))


def test_unsafe_loading_is_written_nowhere():
    """In no source, test or page, this one included."""
    texts = [path for suffix in ("py", "md", "yaml") for path in ROOT.rglob(f"*.{suffix}")]
    texts = [path for path in texts if not {".venv", "site-packages"} & set(path.parts)]
    assert len(texts) > 150
    pattern = re.compile(r"weights_only\s*=\s*False")
    assert [str(path) for path in texts if pattern.search(path.read_text(encoding="utf-8"))] == []


LIGHT = ("configs.default_config", "configs.loading", "utils.metrics", "hybridmednet", "hybridmednet.__main__")


@pytest.mark.parametrize("module", [*LIGHT, *SCRIPTS])
def test_light_modules_do_not_import_torch(module):
    """Scripts have to answer --help at once."""
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
