"""The files of configs/ import each other in one direction, wherever in a file the import stands."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "configs"


def graph_of(files: dict[str, str]) -> dict[str, set[str]]:
    """File → those it imports, in functions and under TYPE_CHECKING too. files: name without .py → text."""
    return {name: imports(text) & files.keys() for name, text in files.items()}


def imports(text: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("configs.") for alias in node.names if alias.name.startswith("configs.")}
        elif isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {node.module} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "configs":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("configs."):
            found.add(str(node.module).removeprefix("configs."))
    return found


def test_no_circle():
    files = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.py")}
    graph = graph_of(files)
    assert graph["reference"] >= {"default_config", "section"} and sum(map(len, graph.values())) > 10
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("errors") < order.index("section") < order.index("loading") < order.index("default_config")


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    from configs.b import g",
        "if TYPE_CHECKING:\n    from configs import b",
        "import configs.b",
        "from . import b",
        "from .b import g",
    ],
)
def test_every_kind_of_import_is_seen(text):
    with pytest.raises(CycleError):
        list(TopologicalSorter(graph_of({"a": text, "b": "from configs.a import f"})).static_order())
