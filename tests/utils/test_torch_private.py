"""What torch and timm keep private is used in one file, on releases that it was checked on."""

import ast
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch import nn

from utils.torch_private import (
    CHECKED_TIMM,
    CHECKED_TORCH,
    FakeTensorMode,
    conditional_step,
    reparametrize_module,
    storage_pointer,
    tensor_version,
    tree_flatten,
    tree_unflatten,
)

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    path
    for path in sorted(ROOT.rglob("*.py"))
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
]
ONE_FILE = ROOT / "utils" / "torch_private.py"
LIBRARIES = ("torch", "timm", "torchvision")
# Private attributes of their objects, which no import shows.
ATTRIBUTES = {
    "_cdata",
    "_get_rel_pos_bias",
    "_metadata",
    "_pos_embed",
    "_shutdown_workers",
    "_version",
    "_workers_done_event",
    "found_inf",
    "grad_scale",
}


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def private_uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what) of imports, chains that begin with a library's name, and attributes that are known."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            name = dotted(node)
            names = [f"torch.{name}" if name.startswith(("nn.", "F.")) else name]
            if node.attr in ATTRIBUTES:
                yield node.lineno, node.attr
        yield from ((node.lineno, n) for n in names if n.partition(".")[0] in LIBRARIES and is_private(n))


def test_private_names_stand_in_one_file():
    uses = {path: list(private_uses(ast.parse(path.read_text(encoding="utf-8")))) for path in SOURCES}
    assert len(uses.pop(ONE_FILE)) > 10  # the search finds them
    assert {str(path.relative_to(ROOT)): found for path, found in uses.items() if found} == {}


@pytest.mark.parametrize(
    "line",
    [
        "from torch.utils._pytree import tree_map",
        "import torch._dynamo",
        "from torch.nn.modules.batchnorm import _BatchNorm",
        "torch._C._log_api_usage_once('x')",
        "nn.utils.stateless._reparametrize_module(model, {})",
        "optimizer.found_inf = flag",
        "version = x.detach()._version",
    ],
)
def test_the_search_finds(line):
    assert list(private_uses(ast.parse(line)))


def minor(release: str) -> tuple[int, int]:
    major, minor = release.split(".")[:2]
    return int(major), int(minor)


def test_requirements_stop_before_the_first_release_that_was_not_checked():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if re.match(r"torch[<>=!]", line)]
    bound = re.search(r"<(\d+\.\d+)(?![\d.])", line)
    assert bound, "torch has no upper bound in requirements.txt"
    major, newest = max(map(minor, CHECKED_TORCH))
    assert minor(bound[1]) == (major, newest + 1)


@pytest.mark.parametrize("library, checked", [("torch", CHECKED_TORCH), ("timm", CHECKED_TIMM)])
def test_no_newer_release_is_installed(library, checked):
    newest, installed = max(map(minor, checked)), version(library)
    assert minor(installed) <= newest, (
        f"{library} {installed} is installed, and utils/torch_private.py was checked on {', '.join(checked)}: run "
        "`make test test-slow` with it, then add it there and raise the bound in requirements.txt"
    )


def test_views_share_a_storage_and_a_version():
    x = torch.zeros(4)
    assert storage_pointer(x) == storage_pointer(x[1:]) != storage_pointer(x.clone())
    before = tensor_version(x)
    x[1:] += 1
    assert tensor_version(x) > before
    with FakeTensorMode():
        fake, other = torch.zeros(4), torch.zeros(4)
        assert storage_pointer(fake) == storage_pointer(fake[1:]) != storage_pointer(other)


def test_trees_are_put_together_as_they_were():
    tree = (torch.zeros(1), None, ((), [torch.ones(2), "text"]))
    leaves, structure = tree_flatten(tree)
    assert leaves[0] is tree[0] and leaves[-2] is tree[2][1][0]
    again = tree_unflatten(leaves, structure)
    assert again == tree or str(again) == str(tree)


def test_tied_parameters_are_replaced_together():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    with reparametrize_module(model, {"0.weight": torch.zeros(3, 3)}):
        assert not model[0].weight.any() and model[1].weight is model[0].weight
    assert model[0].weight.any()


@pytest.mark.parametrize("applied", [True, False])
def test_a_fused_step_is_skipped_by_a_tensor(applied):
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    weight.grad = torch.ones(3)
    conditional_step(optimizer, torch.tensor(applied))
    assert torch.equal(weight, torch.ones(3)) is not applied
    assert not hasattr(optimizer, "found_inf") and not hasattr(optimizer, "grad_scale")
