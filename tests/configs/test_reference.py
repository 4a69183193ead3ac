"""The settings' reference is made from the definitions and kept beside them."""

from pathlib import Path

from configs.reference import markdown

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def test_the_page_is_what_the_definitions_give():
    assert PAGE.read_text(encoding="utf-8") == markdown() + "\n", "python -m configs.reference > docs/configuration.md"
