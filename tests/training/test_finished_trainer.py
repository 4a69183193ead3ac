"""A TrainingLoop is finished by its constructor: nobody else assigns to it or to what it holds."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path
    for path in ROOT.rglob("*.py")
    if not {".venv", "site-packages", "build"} & set(path.parts) and path != ROOT / "training" / "loop.py"
)
MADE_BY = re.compile(r"(^|_|\.)((make|build|our)?_?trainer(_of)?|build_loop)$", re.IGNORECASE)


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def names_of_trainers(tree: ast.Module) -> set[str]:
    """Variables that are called so, are annotated as TrainingLoop, or hold what a maker of trainers gave."""
    found = {"trainer"}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.arg)
            and node.annotation is not None
            and dotted(node.annotation).endswith("TrainingLoop")
        ):
            found.add(node.arg)
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Call)
            and MADE_BY.search(dotted(node.value.func))
        ):
            targets = [name for target in node.targets for name in ast.walk(target)]
            found |= {name.id for name in targets if isinstance(name, ast.Name)}
    return found


def assigned(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            yield from node.targets
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            yield node.target
        elif isinstance(node, ast.Call) and dotted(node.func) in ("setattr", "object.__setattr__") and node.args:
            yield ast.Attribute(node.args[0], str(getattr(node.args[1], "value", "?")))


def parts_of(target: ast.expr) -> Iterator[ast.expr]:
    """A tuple's elements, else the target itself."""
    elements = target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]
    for element in elements:
        yield from [element] if element is target else parts_of(element)


def assignments(tree: ast.Module, nested: bool = True) -> list[str]:
    """'trainer.ema' of each assignment to an attribute of a trainer; nested: 'trainer.state.epoch' too."""
    found, trainers = [], names_of_trainers(tree)
    for target in (part for whole in assigned(tree) for part in parts_of(whole)):
        owners = dotted(target).split(".")[:-1] if isinstance(target, ast.Attribute) else []
        if trainers & set(owners if nested else owners[-1:]):
            found.append(dotted(target))
    return found


def test_the_check_finds_what_it_looks_for():
    tree = ast.parse(
        "trainer.ema = None\nself.trainer.loss += 1\nfirst = make_trainer(x)\nfirst.on_step = f\n"
        "def f(t: TrainingLoop):\n    t.save, other = g, h\nsetattr(trainer, 'loss', 1)\nmodel.ema = 1\n"
        "trainer, ours = our_trainer(work)\nours.x = 1\nx = trainer.state.sums\ntrainer.state.epoch = 3\n"
    )
    direct = ["trainer.ema", "self.trainer.loss", "first.on_step", "t.save", "trainer.loss", "ours.x"]
    assert sorted(assignments(tree, nested=False)) == sorted(direct)
    assert sorted(assignments(tree)) == sorted([*direct, "trainer.state.epoch"])
    assert len(SOURCES) > 200 and ROOT / "train.py" in SOURCES


def test_nobody_assigns_to_a_trainer():
    """Tests may set the counters of its state, sources nothing at all."""
    found = {}
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        found[name] = assignments(ast.parse(path.read_text(encoding="utf-8")), not name.startswith("tests/"))
    assert {name: targets for name, targets in found.items() if targets} == {}
