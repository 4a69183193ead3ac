"""Labels tables of any text: a DataError or a DatasetIndex that agrees with itself. FUZZ_EXAMPLES=20000 is more."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import DataError
from data.readers.tables import read_table
from data.sources.formats import open_csv, open_source
from data.splits.assignment import assign_splits, read_split, write_split
from tests.data.readers.bad_images import GREY, noise, png
from tests.faults import fuzz

VALID = """image,labels,patient_id,split,view,age
a.png,Mass|Nodule,p1,train,PA,50
sub/b.png,No Finding,p2,val,AP,61
"c.png",,p3,test,PA,
"""
CLASSES = """image,Mass,Edema,patient_id\na.png,1,0,p1\nsub/b.png,-1,,p2\nc.png,0,1.0,p1\n"""
ENDED: Counter[str] = Counter()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("fuzz")
    (root / "sub").mkdir()
    for name in ("a.png", "sub/b.png", "c.png"):
        (root / name).write_bytes(png(noise(np.random.default_rng(0)), GREY))
    return root


def attempt(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What it returns; None where it was a DataError that says something. Any other exception fails the test."""
    try:
        found = function(*arguments, **options)
    except DataError as error:
        assert str(error)
        ENDED["refused"] += 1
        return None
    ENDED["read"] += 1
    return found


def check(folder: Path, content: bytes) -> None:
    """Read a table in all ways that lead to it; what is read must agree with itself."""
    path = folder / "labels.csv"
    path.write_bytes(content)
    table = attempt(read_table, path)
    assert table is None or {len(cells) for _, cells in table.rows} == {len(table.header)}
    dataset_index = attempt(open_csv, folder, path, allow_missing=True)
    attempt(open_csv, folder, path, ("Mass", "Nodule"))
    attempt(open_csv, folder, path, volumes=True)
    attempt(open_source, folder, format="nih")
    if dataset_index is None:
        return
    codes = dataset_index.label_matrix()
    assert codes.shape == (len(dataset_index.studies), len(dataset_index.class_names)) and len(codes)
    assert np.isin(codes[~np.isnan(codes)], (-1, 0, 1)).all()
    assert all((folder / study.name).resolve().is_relative_to(folder.resolve()) for study in dataset_index.studies)
    split = attempt(assign_splits, dataset_index, allow_patient_overlap=True)
    if split is not None:
        write_split(folder / "split.csv", dataset_index, split)
        assert (read_split(folder / "split.csv", dataset_index) == split).all()


@fuzz(fraction=0.15)
@given(content=st.binary(max_size=120))
def test_any_bytes(folder, content):
    check(folder, content)


@fuzz(fraction=0.15)
@given(text=st.text(max_size=120))
def test_any_text(folder, text):
    check(folder, text.encode("utf-8", "surrogatepass"))


good = st.sampled_from(["a.png", "sub/b.png", "c.png", "./a.png", "none.png"])
images = good | good | st.sampled_from(["../x", "/x", "sub", "", "x" * 300 + "/y", "a.png/b"]) | st.text(max_size=8)
COLUMNS = {
    "labels": ["", "Mass", "Mass|Nodule", "No Finding", "Edema"],
    "Mass": ["", "1", "0", "-1", "1.0"],
    "Nodule": ["0", "1"],
    "split": ["train", "val", "test", "Valid"],
    "patient_id": ["", "p1", "p2"],
    "path": ["a.png"],
    "": ["0", "1"],
}
strays = st.sampled_from(["nan", "inf", "1e999", "x" * 300, "Mass|No Finding", "2", "٣"]) | st.text(max_size=5)


@st.composite
def random_tables(draw: st.DrawFn) -> str:
    """A header of names that mean something, rows of cells that mostly fit it."""
    header = draw(st.lists(st.sampled_from([*COLUMNS]), max_size=4, unique=True))
    stray = draw(st.booleans())
    cells = [st.sampled_from(COLUMNS[name]) | (strays if stray else st.nothing()) for name in header]
    rows = draw(st.lists(st.tuples(images if stray else good, *cells), max_size=5))
    text, end = io.StringIO(newline=""), draw(st.sampled_from(["\n", "\r\n", "\r"]))
    csv.writer(text, lineterminator=end).writerows([["image", *header], *rows])
    return text.getvalue()


@fuzz(fraction=0.4)
@given(text=random_tables())
def test_random_tables(folder, text):
    check(folder, text.encode("utf-8", "surrogatepass"))


pieces = st.sampled_from(
    [b",", b"\n", b'"', b"|", b"1", b"0", b"\r", b"\0", b"../", b"a.png", b"Mass", b"\xef\xbb\xbf"]
)


@st.composite
def changed_tables(draw: st.DrawFn) -> bytes:
    content = draw(st.sampled_from([VALID, CLASSES])).encode()
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 8)))
        content = (
            content[:start] + draw(pieces | st.binary(max_size=2) | st.just(content[start:end] * 2)) + content[end:]
        )
    return content


@fuzz(fraction=0.3)
@given(content=changed_tables())
def test_changed_tables(folder, content):
    check(folder, content)


def test_most_examples_reached_something():
    """Counts of the tests above: a generator that only makes rubbish, or only what is sound, would find nothing."""
    if not ENDED:
        pytest.skip("counts what the tests above did")
    print(f"{ENDED.total()} readings of random tables: {dict(ENDED)}")
    assert ENDED["refused"] > 0.2 * ENDED.total() and ENDED["read"] > 0.05 * ENDED.total()
