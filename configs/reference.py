"""docs/configuration.md and its Chinese twin from the definitions.

`python -m configs.reference > docs/configuration.md`, `python -m configs.reference zh > docs/configuration_zh.md`
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from pydantic.fields import FieldInfo

from configs.default_config import Config
from configs.section import Section, allowed_values, default_text

HEAD = """# Every setting

[中文](configuration_zh.md)

Made by `python -m configs.reference`; the definitions are in `configs/default_config.py`, the
Chinese help texts in `configs/help_zh.toml`.
An edited default, a YAML file, `--set SECTION.key=value` and `config.SECTION['key'] = value` count alike and go through
the same checks. `null` where a value follows from others or from the data: it is filled when a run begins.
"""
HEAD_ZH = """# 全部设置

[English](configuration.md)

由 `python -m configs.reference zh` 生成；定义在 `configs/default_config.py`，中文说明在 `configs/help_zh.toml`。
修改默认值、YAML 文件、`--set SECTION.key=value` 和 `config.SECTION['key'] = value` 的效果相同，并经过同样的检查。
默认值为 `null` 的设置由其他设置或数据决定，在运行开始时填入。
"""
HELP_ZH = Path(__file__).with_name("help_zh.toml")
_TYPES_ZH = {
    "a whole number": "整数",
    "a number": "数",
    "text": "文本",
    "a mapping of names": "名称的映射",
    "a mapping of settings": "设置的映射",
}
_BOUNDS_ZH = {"at least": "至少", "greater than": "大于", "at most": "至多", "less than": "小于", " and ": " 且 "}


def markdown() -> str:
    """One table a section: key, default, what is allowed, meaning."""
    parts = [HEAD]
    for name, section in sections():
        parts.append(
            f"\n## {name}\n\n{section.__doc__}\n\n| key | default | allowed | meaning |\n| --- | --- | --- | --- |"
        )
        parts += [
            _row(key, field, allowed_values(field), field.description or "") for key, field in settings_of(section)
        ]
    return "\n".join(parts)


def markdown_zh() -> str:
    """The same tables with the help texts of help_zh.toml; KeyError where one is missing."""
    texts = help_zh()
    parts = [HEAD_ZH]
    for name, section in sections():
        columns = "| 键 | 默认值 | 允许的值 | 含义 |\n| --- | --- | --- | --- |"
        parts.append(f"\n## {name}\n\n{texts[f'sections.{name}']}\n\n{columns}")
        for key, field in settings_of(section):
            parts.append(_row(key, field, allowed_zh(allowed_values(field)), texts[f"{name}.{key}"]))
    return "\n".join(parts)


def sections() -> Iterator[tuple[str, type[Section]]]:
    """(name, class) of each section of a config."""
    for name, field in Config.model_fields.items():
        section: type[Section] = field.default_factory  # type: ignore[assignment]
        yield name, section


def settings_of(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(key, field) of each setting, those of sections within it with their dotted names."""
    for key, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from settings_of(field.annotation, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", field


def help_zh() -> dict[str, str]:
    """SECTION.key → what it means in Chinese; sections.SECTION → what the section is."""
    return dict(_flat(tomllib.loads(HELP_ZH.read_text(encoding="utf-8")), ""))


def _flat(table: dict[str, object], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def allowed_zh(allowed: str) -> str:
    """'one of a, b or null' → 'a、b 或 null', for the words of `allowed_values`."""
    parts = [_type_zh(part) for part in allowed.replace("true or false", "true/false").split(" or ")]
    return re.sub(r"(?<=[^\x00-\x7f]) (?=[^\x00-\x7f])", "", "或".join(f" {part} " for part in parts)).strip()


def _type_zh(part: str) -> str:
    words, _, bounds = part.partition(" (")
    if bounds:
        for english, chinese in _BOUNDS_ZH.items():
            bounds = bounds.replace(english, chinese)
        return f"{_type_zh(words)}（{bounds.removesuffix(')')}）"
    if words.startswith("one of "):
        return words.removeprefix("one of ").replace(", ", "、")
    if words.startswith("a list"):
        return "列表" + (f"，每项为{_type_zh(words.removeprefix('a list, each '))}" if "each" in words else "")
    return _TYPES_ZH.get(words, words)


def _row(key: str, field: FieldInfo, allowed: str, meaning: str) -> str:
    cells = (f"`{key}`", f"`{default_text(field)}`", allowed, meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m configs.reference", description="Prints every setting as Markdown."
    )
    parser.add_argument("language", nargs="?", choices=["en", "zh"], default="en")
    print(markdown_zh() if parser.parse_args().language == "zh" else markdown())
