"""Every page in English has its page in Chinese, which says the same of the same things.

What can be compared without reading either: headings, code, keys of settings, options, names of files, links, images,
the rows of tables, and figures. What is said about them is read by people.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from configs.default_config import Config
from configs.reference import allowed_zh, help_zh, markdown_zh, sections, settings_of
from configs.section import allowed_values

ROOT = Path(__file__).resolve().parents[1]
ENGLISH_ONLY = {
    "docs/ARCHITECTURE.md": "a map of the sources, whose names and comments are English; tests hold it to them",
    "CHANGELOG.md": "a list of what changed, written with each release",
}
# Records that programs write: their tables say the same in any language.
RECORDS = "docs/benchmarks"
SWITCH = re.compile(r"\[(?:中文|English)\]\([^)]*\)")
_KEY = re.compile(rf"\b(?:{'|'.join(Config.model_fields)})\.[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
_FILE = re.compile(
    r"(?<![\w.])[\w./*-]*\w\.(?:py|md|ya?ml|txt|json|jsonl|csv|pth|onnx|png|svg|html|npz|log|ipynb|toml)\b"
)
_FIGURE = re.compile(r"(?<![\w.])\d[\d,]*\.\d+|(?<![\w.,-])\d{3,}(?!\w|[.-]\w)")


@dataclass
class Outline:
    """What a page has that is the same in every language."""

    headings: list[int] = field(default_factory=list)
    code: list[str] = field(default_factory=list)
    table_rows: list[int] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    options: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)
    figures: set[str] = field(default_factory=set)
    links: Counter[str] = field(default_factory=Counter)
    images: list[str] = field(default_factory=list)


def pages() -> list[Path]:
    """Pages in English that people read, records of measurements apart."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    built = ("docs/_build", RECORDS)
    names = [path.relative_to(ROOT).as_posix() for path in found]
    return [ROOT / name for name in sorted(names) if not name.startswith(built) and not name.endswith("_zh.md")]


def chinese(page: Path) -> Path:
    return page.with_name(f"{page.stem}_zh.md")


def in_english(name: str) -> str:
    """The name of a page's or a link's counterpart."""
    return re.sub(r"_zh(?=\.md|$)", "", name)


def code_of(language: str, block: str) -> str:
    """The lines of a block without comments, and with placeholders (<run>) alike; of plain text its names of files."""
    if not language:
        return " ".join(sorted(in_english(name) for name in set(_FILE.findall(block))))
    lines = [re.sub(r"(?:^|\s+)(?:#|//)\s.*$", "", line).rstrip() for line in block.splitlines()]
    return "\n".join(re.sub(r"<[^<>=]+>", "<…>", line) for line in lines if line)


def without_code(text: str) -> tuple[str, list[str]]:
    text = re.sub(r"^```\{toctree\}.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)  # says where pages are, not what
    blocks = re.findall(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE), [code_of(*block) for block in blocks]


def tables_of(prose: str) -> list[int]:
    """The number of rows of each table."""
    runs, count = [], 0
    for line in [*prose.splitlines(), ""]:
        if line.lstrip().startswith("|"):
            count += 1
        elif count:
            runs.append(count)
            count = 0
    return runs


def outline(text: str) -> Outline:
    text = SWITCH.sub("", text)
    prose, code = without_code(text)
    images = re.findall(r"!\[[^\]]*\]\(([^)\s]+)", prose)
    targets = re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", prose)
    links = Counter(in_english(target.partition("#")[0] or "#") for target in targets)
    bare = re.sub(r"\]\([^)\s]+\)", "]", prose)
    return Outline(
        headings=[len(level) for level in re.findall(r"^(#+) ", prose, re.MULTILINE)],
        code=code,
        table_rows=tables_of(prose),
        keys=set(_KEY.findall(bare)),
        options=set(_OPTION.findall(bare)),
        files={in_english(name) for name in _FILE.findall(bare.replace("**", ""))},
        figures=set(_FIGURE.findall(bare)),
        links=links,
        images=images,
    )


def _apart(what: str, english: set[str] | Counter[str], other: set[str] | Counter[str]) -> list[str]:
    lacks, extra = sorted(english - other), sorted(other - english)
    found = [f"{what} only in English: {', '.join(lacks)}"] if lacks else []
    return found + ([f"{what} only in Chinese: {', '.join(extra)}"] if extra else [])


def differences(english: str, other: str) -> list[str]:
    """What one of two pages has and the other lacks, a line each."""
    a, b = outline(english), outline(other)
    found = []
    if a.headings != b.headings:
        found.append(f"levels of headings {a.headings} in English, {b.headings} in Chinese")
    if a.table_rows != b.table_rows:
        found.append(f"rows of tables {a.table_rows} in English, {b.table_rows} in Chinese")
    if a.images != b.images:
        found.append(f"images {a.images} in English, {b.images} in Chinese")
    found += _apart("code", set(a.code), set(b.code))
    if len(a.code) != len(b.code):
        found.append(f"{len(a.code)} blocks of code in English, {len(b.code)} in Chinese")
    for what in ("keys", "options", "files", "figures", "links"):
        found += _apart(what, getattr(a, what), getattr(b, what))
    return found


def anchors(text: str) -> set[str]:
    """The anchors that GitHub and MyST give to a page's headings."""
    found: Counter[str] = Counter()
    result = set()
    for heading in re.findall(r"^#+ (.+?)\s*$", without_code(text)[0], re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        result.add(f"{slug}-{found[slug]}" if found[slug] else slug)
        found[slug] += 1
    return result


def broken_anchors(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    found = []
    for path, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", text):
        target = page.parent / path if path else page
        if "://" in path or target.suffix != ".md" or not target.is_file():
            continue
        if anchor not in anchors(target.read_text(encoding="utf-8")):
            found.append(f"{path}#{anchor}")
    return found


def links_to_the_other_language(page: Path) -> list[str]:
    """Links of a Chinese page to a page that there is in Chinese."""
    text = SWITCH.sub("", page.read_text(encoding="utf-8"))
    targets = re.findall(r"(?<!!)\]\(([^)#\s]+\.md)", text)
    return [link for link in targets if "_zh.md" not in link and chinese(page.parent / link).is_file()]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_setting_has_its_help_in_chinese():
    """configs/help_zh.toml: a new key of the config needs a line there, and one that is gone leaves none."""
    expected = {f"{name}.{key}" for name, section in sections() for key, _ in settings_of(section)}
    expected |= {f"sections.{name}" for name, _ in sections()}
    assert expected - set(help_zh()) == set() and set(help_zh()) - expected == set()
    assert [
        key for key, text in help_zh().items() if not re.search(r"[\u4e00-\u9fff]", text) and "、" not in text
    ] == []


def test_the_settings_in_chinese_are_what_the_definitions_give():
    page = ROOT / "docs" / "configuration_zh.md"
    made = "python -m configs.reference zh > docs/configuration_zh.md"
    assert page.read_text(encoding="utf-8") == markdown_zh() + "\n", made


def test_what_is_allowed_is_said_in_chinese():
    words = {allowed_zh(allowed_values(field)) for _, section in sections() for _, field in settings_of(section)}
    assert [text for text in words if re.search(r"\b(?:a|each|of|number|greater|less|least|most|or)\b", text)] == []
    assert allowed_zh("one of auto or a whole number (greater than 0)") == "auto 或整数（大于 0）"


def test_every_page_is_there_in_both_languages():
    lacking = [name_of(page) for page in pages() if name_of(page) not in ENGLISH_ONLY and not chinese(page).is_file()]
    assert lacking == [], "pages without a page x_zh.md beside them, and without a reason in ENGLISH_ONLY"
    alone = [path for path in ROOT.glob("docs/**/*_zh.md") if not path.with_name(in_english(path.name)).is_file()]
    assert alone == [] and all((ROOT / name).is_file() for name in ENGLISH_ONLY)


@pytest.mark.parametrize("page", [page for page in pages() if name_of(page) not in ENGLISH_ONLY], ids=name_of)
def test_both_languages_say_the_same(page):
    english, other = page.read_text(encoding="utf-8"), chinese(page).read_text(encoding="utf-8")
    found = differences(english, other)
    assert not found, "\n".join(["", *found])
    assert f"[中文]({chinese(page).name})" in english and f"[English]({page.name})" in other
    assert links_to_the_other_language(chinese(page)) == []
    assert broken_anchors(page) + broken_anchors(chinese(page)) == []


ENGLISH = """# A page

[中文](page_zh.md) `TRAIN.epochs` with `--dry-run`, [data](data.md#tables), 0.753 of 1,200, `last.pth`

![one](images/a.png)

## Use

```bash
python train.py --resume checkpoints/<run>   # go on
```

| a | b |
| --- | --- |
| 1 | 2 |
"""
CHINESE = """# 页面

[English](page.md) 用 `--dry-run` 和 `TRAIN.epochs`，见[数据](data_zh.md#表格)，1,200 中的 0.753，`last.pth`

![一](images/a.png)

## 用法

```bash
python train.py --resume checkpoints/<运行名>   # 继续
```

| 甲 | 乙 |
| --- | --- |
| 1 | 2 |
"""


def test_pages_that_say_the_same_do_not_differ():
    assert differences(ENGLISH, CHINESE) == []


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("## 用法", "### 用法", "levels of headings [1, 2] in English, [1, 3] in Chinese"),
        ("--resume checkpoints", "checkpoints", "code only in English: python train.py --resume checkpoints/<…>"),
        ("TRAIN.epochs", "TRAIN.epoch", "keys only in English: TRAIN.epochs"),
        ("--dry-run", "--dry", "options only in English: --dry-run"),
        ("last.pth", "best.pth", "files only in English: last.pth"),
        ("data_zh.md", "runs_zh.md", "links only in English: data.md"),
        ("images/a.png", "images/b.png", "images ['images/a.png'] in English, ['images/b.png'] in Chinese"),
        ("| 1 | 2 |\n", "", "rows of tables [3] in English, [2] in Chinese"),
        ("0.753", "0.735", "figures only in English: 0.753"),
    ],
)
def test_what_a_page_lacks_is_named(old, new, named):
    assert old in CHINESE
    assert named in differences(ENGLISH, CHINESE.replace(old, new))


def test_anchors_are_those_of_the_headings():
    text = "# A page\n\n## Studies: what each input brings\n\n## `status.json`\n\n## 速度\n\n## 速度\n"
    expected = {"a-page", "studies-what-each-input-brings", "statusjson", "速度", "速度-1"}
    assert anchors(text) == expected
