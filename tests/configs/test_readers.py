"""Every setting has a reader in the project's own files."""

import ast
from pathlib import Path

import pytest

from configs.default_config import Config
from configs.section import Section
from tests.configs.settings import SECTIONS, SETTINGS

ROOT = Path(__file__).resolve().parents[2]


def sources() -> list[Path]:
    """The project's own Python files, tests and benchmarks apart."""
    folders = ("configs", "data", "models", "training", "evaluation", "utils")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    files += [path for path in ROOT.glob("*.py") if not path.name.startswith("test_")]
    return sorted(files)


class Reads(ast.NodeVisitor):
    """Collects (section, key) for every read such as `config.TRAIN.epochs`, `config.TRAIN["epochs"]`,
    `config["TRAIN"].get("epochs")`, or through a name that stands for a section: `settings = config.TRAIN`,
    `def f(settings: TrainSettings)`.
    """

    def __init__(self) -> None:
        self.found: set[tuple[str, ...]] = set()
        self.scopes: list[dict[str, tuple[str, ...]]] = [{}]

    def section_of(self, node: ast.AST) -> tuple[str, ...] | None:
        """The section that an expression stands for, if it does: ('TRAIN',) for config.TRAIN."""
        if isinstance(node, ast.Name):
            return next((scope[node.id] for scope in reversed(self.scopes) if node.id in scope), None)
        path = self.read_of(node)
        return path if path is not None and path in SECTION_PATHS else None

    def read_of(self, node: ast.AST) -> tuple[str, ...] | None:
        """The path that an attribute, an item or a get reads: ('TRAIN',), ('TRAIN', 'epochs')."""
        if isinstance(node, ast.Attribute):
            owner, key = node.value, node.attr
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            owner, key = node.value, node.slice.value
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "get"
            and node.args
        ):
            owner, key = node.func.value, getattr(node.args[0], "value", None)
        else:
            return None
        if key in SECTIONS:
            return (key,)
        section = self.section_of(owner)
        return (*section, key) if section is not None and isinstance(key, str) else None

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name == "problems":
            return  # a check alone is no use of a setting
        scope = {}
        arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        for argument in arguments:
            for name in ast.walk(argument.annotation) if argument.annotation else ():
                if isinstance(name, ast.Name) and name.id in SECTION_CLASSES:
                    scope[argument.arg] = SECTION_CLASSES[name.id]
        self.scopes.append(scope)
        self.generic_visit(node)
        self.scopes.pop()

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts))
            for one, value in pairs:
                section = self.section_of(value)
                if isinstance(one, ast.Name) and section is not None:
                    self.scopes[-1][one.id] = section
        self.generic_visit(node)

    def generic_visit(self, node: ast.AST) -> None:
        path = self.read_of(node)
        if path is not None and not isinstance(getattr(node, "ctx", None), (ast.Store, ast.Del)):
            self.found.add(path)
        super().generic_visit(node)


def section_classes(section: type[Section] = Config, path: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    """{'TrainSettings': ('TRAIN',), …}, nested ones too."""
    found = {section.__name__: path} if path else {}
    for key, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= section_classes(field.annotation, (*path, key))
    return found


SECTION_CLASSES = section_classes()
SECTION_PATHS = set(SECTION_CLASSES.values())
NESTED = ("MODEL", "gradient_checkpointing", "enabled")


def reads(text: str) -> set[tuple[str, ...]]:
    visitor = Reads()
    visitor.visit(ast.parse(text))
    return visitor.found & set(SETTINGS)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("x = config.TRAIN.epochs", {("TRAIN", "epochs")}),
        ("x = config['TRAIN']['epochs']", {("TRAIN", "epochs")}),
        ("x = config.TRAIN.get('epochs', 3)", {("TRAIN", "epochs")}),
        ("def f(c):\n a, b = c.TRAIN, c.DATA\n return a.seed, b.mean", {("TRAIN", "seed"), ("DATA", "mean")}),
        ("def f(s: TrainSettings): return s.epochs", {("TRAIN", "epochs")}),
        ("def f(s: ModelSettings): return s.gradient_checkpointing.enabled", {NESTED}),
        ("config.TRAIN.epochs = 3", set()),
        ("torch.compile(model); x.format(); net.name", set()),
        ("def problems(self): return self.TRAIN.epochs", set()),
    ],
)  # fmt: skip
def test_the_search_for_readers_finds_reads_only(text, expected):
    assert reads(text) == expected


def test_every_key_has_a_reader():
    files = [path for path in sources() if path != ROOT / "configs" / "section.py"]
    read = set().union(*(reads(path.read_text(encoding="utf-8")) for path in files))
    unread = [".".join(path) for path in SETTINGS if path not in read]
    assert not unread, f"settings that nothing reads: {', '.join(unread)}"
