"""docs/configuration.md from the definitions: `python -m configs.reference > docs/configuration.md`."""

from __future__ import annotations

from configs.default_config import Config
from configs.section import Section, allowed_values, default_text

HEAD = """# Every setting

Made by `python -m configs.reference`; the definitions are in `configs/default_config.py`.
An edited default, a YAML file, `--set SECTION.key=value` and `config.SECTION['key'] = value` count alike and go through
the same checks. `null` where a value follows from others or from the data: it is filled when a run begins.
"""


def markdown() -> str:
    """One table a section: key, default, what is allowed, meaning."""
    parts = [HEAD]
    for name, field in Config.model_fields.items():
        section: type[Section] = field.default_factory  # type: ignore[assignment]
        parts.append(
            f"\n## {name}\n\n{section.__doc__}\n\n| key | default | allowed | meaning |\n| --- | --- | --- | --- |"
        )
        parts += _rows(section, "")
    return "\n".join(parts)


def _rows(section: type[Section], prefix: str) -> list[str]:
    rows = []
    for key, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            rows += _rows(field.annotation, f"{prefix}{key}.")
            continue
        cells = (f"`{prefix}{key}`", f"`{default_text(field)}`", allowed_values(field), field.description or "")
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


if __name__ == "__main__":
    print(markdown())
