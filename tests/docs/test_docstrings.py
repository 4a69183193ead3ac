"""Docstrings become reStructuredText that says the same, and none of the sources' is at fault."""

import ast
from collections.abc import Iterator

import docutils.frontend
import docutils.nodes
import docutils.parsers.rst
import docutils.utils
import pytest

from docs.docstrings import restructured
from docs.module_pages import ROOT, modules_of

Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module


SETTINGS = docutils.frontend.get_default_settings(docutils.parsers.rst.Parser)
SETTINGS.report_level, SETTINGS.warning_stream = 5, False


def parsed(text: str) -> tuple[docutils.nodes.document, list[str]]:
    """The document, and what docutils complains of."""
    document = docutils.utils.new_document("docstring", SETTINGS)
    docutils.parsers.rst.Parser().parse(text, document)
    return document, [message.astext() for message in document.findall(docutils.nodes.system_message)]


def arguments_of(node: Documented) -> set[str]:
    """The parameters of a function, or of a class's __init__; the fields of a dataclass."""
    if isinstance(node, ast.ClassDef):
        fields = {
            item.target.id
            for item in node.body
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        }
        return fields.union(
            *(arguments_of(item) for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__")
        )
    if isinstance(node, ast.Module):
        return set()
    return {argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}


def docstrings() -> Iterator[tuple[str, str, set[str]]]:
    """(where, docstring, parameters) of what the reference shows, without importing it."""
    for module in sorted({name for modules in modules_of(ROOT).values() for name in modules}):
        tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            text = ast.get_docstring(node) if isinstance(node, Documented) else None
            if text:
                assert isinstance(node, Documented)
                yield f"{module}:{getattr(node, 'name', '')}", text, arguments_of(node)


def test_no_docstring_is_at_fault():
    found = list(docstrings())
    faults = {where: parsed("\n".join(restructured(text.splitlines(), known)))[1] for where, text, known in found}
    assert len(found) > 1500
    assert {where: messages for where, messages in faults.items() if messages} == {}


def test_text_is_shown_as_it_was_written():
    lines = ["K. Weights [B, *spatial] of |Δ| < 1e-4, a_ and b*c; `draw_`s and ``raw`` are code."]
    document, messages = parsed("\n".join(restructured(lines, set())))
    assert messages == []
    assert document.astext() == "K. Weights [B, *spatial] of |Δ| < 1e-4, a_ and b*c; draw_s and raw are code."
    assert [node.astext() for node in document.findall(docutils.nodes.literal)] == ["draw_", "raw"]


def test_parameters_become_fields_with_the_lines_that_go_on():
    lines = [
        "Build it.",
        "",
        "name: one of the table,",
        "    or timm/<name>.",
        "size, width: in pixels, as",
        "the image has them.",
        "Raises ModelError for others.",
        "note: is no parameter",
    ]
    document, messages = parsed("\n".join(restructured(lines, {"name", "size", "width"})))
    assert messages == []
    fields = [(field[0].astext(), field[1].astext()) for field in document.findall(docutils.nodes.field)]
    assert fields == [
        ("param name", "one of the table,\nor timm/<name>."),
        ("param size,\u200bwidth", "in pixels, as\nthe image has them."),
    ]
    assert document[-1].astext() == "Raises ModelError for others.\nnote: is no parameter"


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        (["Two ways:", "- one,", "  which goes on", "- two"], docutils.nodes.bullet_list),
        (["A table:", "    a  b", "    1  2", "", "    3  4", "and on."], docutils.nodes.literal_block),
    ],
)
def test_lists_and_what_is_indented(lines, kind):
    document, messages = parsed("\n".join(restructured(lines, set())))
    assert messages == [] and len(list(document.findall(kind))) == 1
