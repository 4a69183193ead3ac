"""Each kind of finding in data where it is, and none where it is not."""

import math

import numpy as np
import pytest

from data.clinical_table import CategoricalColumn, ClinicalTable, NumericColumn
from data.examination.files import changed_files, empty_files, record_files
from data.examination.images import Scan, sample_rows, scan_findings
from data.examination.labels import class_counts, label_findings, patient_findings
from data.examination.table import table_findings
from data.profile import measure
from data.sources.image_files import FileReader
from data.study import IMAGE, DatasetIndex, Study

RNG = np.random.default_rng(0)


def index_of(labels: np.ndarray, names: tuple[str, ...], patients: list[str] | None = None, **table) -> DatasetIndex:
    rows = [{key: str(values[row]) for key, values in table.items()} for row in range(len(labels))]
    studies = tuple(
        Study(
            f"{row}.png",
            {IMAGE: f"{row}.png"},
            labels[row].astype(np.float32),
            (patients or [""] * len(labels))[row],
            table=rows[row],
        )
        for row in range(len(labels))
    )
    return DatasetIndex(names, studies, lambda row: np.zeros((8, 8), np.uint8))


def texts(findings, severity: str = "") -> list[str]:
    return [one.message for one in findings if severity in ("", one.severity)]


# ---- labels


def test_rare_and_absent_classes():
    labels = np.zeros((40, 3))
    labels[:12, 0] = 1  # often in train, never in val
    labels[30:32, 1] = 1  # never in train, twice in val
    labels[[0, 35], 2] = 1  # once on each side
    splits = np.array(["train"] * 30 + ["val"] * 10)
    index = index_of(labels, ("A", "B", "C"))
    warnings, notes = (texts(label_findings(index, splits, 2), severity) for severity in ("warning", "note"))
    assert "none of the 30 images of train is positive for B: nothing is learnt of it" in warnings
    assert "none of the 10 images of val is positive for A: it has no AUROC there" in warnings
    assert "val: fewer than 2 patients are positive for C (1): no intervals" in warnings and len(warnings) == 3
    assert notes == ["val: fewer than 10 positives of B (2): their intervals will be wide"]
    assert class_counts(index, splits)[0] == "A: train 12 of 30, val 0 of 10"


def test_sound_labels_say_nothing():
    labels = np.tile([[0.0, 1.0], [1.0, 0.0]], (40, 1))
    index = index_of(labels, ("A", "B"), [f"p{row}" for row in range(80)])
    splits = np.array((["train"] * 2 + ["val"] * 2) * 20)
    assert label_findings(index, splits, 2) == [] and list(patient_findings(index.studies)) == []


@pytest.mark.parametrize("name", ["No Finding", "正常", "normal"])
def test_nothing_and_something_at_once(name):
    labels = np.tile([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], (40, 1))
    (found,) = (one for one in label_findings(index_of(labels, (name, "B")), np.array(["train"] * 120), 2))
    assert found.message.startswith(f"40 images are positive for '{name}' and for another class: 2.png ({name}|B)")
    exclusive = DatasetIndex(
        (name, "B"), index_of(labels, (name, "B")).studies, lambda row: np.zeros(1), exclusive=True
    )
    assert label_findings(exclusive, np.array(["train"] * 120), 2) == []


def test_images_without_a_label():
    labels = np.tile([[0.0], [1.0], [math.nan]], (20, 1))
    assert (
        "20 of 60 images without a known label: 2.png, 5.png"
        in texts(label_findings(index_of(labels, ("A",)), np.array(["train"] * 60), 2))[0]
    )


def test_patients_with_two_sexes_and_ages_of_nobody():
    index = index_of(
        np.zeros((4, 1)), ("A",), ["p1", "p1", "p2", "p2"], sex=["F", "male", "f", "Female"], age=[30, 999, "", "-1"]
    )
    found = texts(patient_findings(index.studies))
    assert found[0] == "1 patient has images of two sexes: p1 (F and male)"
    assert found[1] == "2 images have an age that is not between 0 and 120 years: 1.png (999), 3.png (-1)"


# ---- images


def scan_of(images: list[np.ndarray], unreadable: dict[int, str] | None = None) -> Scan:
    names = {row: f"{row}.png" for row in range(len(images))}
    return Scan(list(names), len(names), names, {row: measure(one) for row, one in enumerate(images)}, unreadable or {})


def usual(count: int = 40) -> list[np.ndarray]:
    """Bright in the middle, dark at the edges, with noise."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    pattern = 200 * np.exp(-2 * (x**2 + y**2))
    return [np.clip(pattern + RNG.normal(0, 10, pattern.shape), 0, 255).astype(np.uint8) for _ in range(count)]


def told(images: list[np.ndarray], shape: tuple[int, int] = (64, 64)) -> list[str]:
    return texts(scan_findings(scan_of(images), False, 0, shape))


def test_images_that_are_alike_say_nothing():
    assert told(usual()) == []


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda one: 255 - one, "1 image is bright where the others are dark"),
        (lambda one: one[:, 20:40], "1 image has another shape than most (64 x 64): 7.png (20 x 64)"),
        (lambda one: np.repeat(np.repeat(one, 8, 0), 8, 1), "1 image is of another size than most"),
        (lambda one: np.full_like(one, 250), "1 image is much brighter or darker than most"),
        (lambda one: one.astype(np.uint16) * 16, "1 of 40 images read: not 8 bits as most are: 7.png (16 bits)"),
        (
            lambda one: np.stack([one, one // 2, one // 4], 2),
            "1 of 40 images read: not grey as most are: 7.png (colour)",
        ),
    ],
)
def test_one_image_unlike_the_others(change, words):
    images = usual()
    images[7] = change(images[7])
    assert any(words in one for one in told(images))


def test_two_kinds_of_image_of_equal_number_are_no_exception():
    images = usual()
    assert not any(
        "another shape" in one for one in told([one[:, 20:40] if n % 2 else one for n, one in enumerate(images)])
    )


def test_images_much_smaller_than_the_input():
    assert any("40 of 40 images read: less than half as large as" in one for one in told(usual(), (224, 224)))


def test_unreadable_images_against_what_is_allowed():
    scan = scan_of(usual(), {3: "image 'x.png': bad", 4: "image 'y.png': bad"})
    for allowed, severity in ((1, "error"), (2, "warning")):
        (found,) = scan_findings(scan, False, allowed, (64, 64))
        assert found.severity == severity and "2 of 40 images cannot be read" in found.message


def test_the_same_sample_each_time():
    assert sample_rows(10, None).tolist() == sample_rows(10, 10).tolist() == list(range(10))
    assert (
        sample_rows(1000, 5).tolist() == sample_rows(1000, 5).tolist() and len(set(sample_rows(1000, 5).tolist())) == 5
    )


# ---- files


@pytest.fixture
def files(tmp_path) -> DatasetIndex:
    for row in range(6):
        (tmp_path / f"{row}.png").write_bytes(bytes([row]) * 9000)
    index = index_of(np.zeros((6, 1)), ("A",))
    return DatasetIndex(("A",), index.studies, FileReader(tmp_path, tuple(f"{row}.png" for row in range(6))))


def test_files_that_change_are_told(files, tmp_path):
    record = record_files(files)
    assert changed_files(files, record) == [] and record["images"] == 6
    (tmp_path / "1.png").write_bytes(b"\1" * 8999 + b"\0")  # the same size
    (tmp_path / "2.png").unlink()
    told = texts(changed_files(files, record))
    assert told == [
        "of 6 files that the run remembers, 1 have other content: 1.png",
        "of 6 files that the run remembers, 1 are not there any more: 2.png",
    ]
    assert [one.severity for one in changed_files(files, {})] == ["note"]


def test_empty_files(files, tmp_path):
    (tmp_path / "4.png").write_bytes(b"")
    (tmp_path / "5.png").unlink()
    found = empty_files(files, "plain")
    assert sorted(found) == [4, 5] and "the file is empty" in found[4] and "No such file" in found[5]


# ---- tables


def table_of(*columns: NumericColumn | CategoricalColumn) -> list[str]:
    return texts(table_findings(ClinicalTable(columns, np.ones(len(columns[0].known), bool))))


def test_columns_that_are_sound():
    age, creatinine = RNG.uniform(0.5, 99, 200), np.exp(RNG.normal(0, 0.6, 200))
    sex = CategoricalColumn("sex", tuple("FM"[number % 2] for number in range(200)))
    assert table_of(NumericColumn("age", age), NumericColumn("creatinine", creatinine), sex) == []


def test_two_units_in_one_column():
    height = RNG.normal(1.7, 0.1, 100)
    height[:10] *= 100
    (found,) = table_of(NumericColumn("height", height))
    assert "10 values around 16" in found and "90 around 1.7" in found and "two units?" in found


def test_codes_for_unknown_and_slips():
    temperature = RNG.normal(37, 0.8, 200)
    temperature[3] = 999
    assert "1 value far from all others (median 3" in table_of(NumericColumn("temperature", temperature))[0]


def test_many_gaps_names_and_single_spellings():
    few = np.full(100, math.nan)
    few[:20] = RNG.normal(0, 1, 20)
    names = CategoricalColumn("name", tuple(f"person {number}" for number in range(100)))
    sex = CategoricalColumn("sex", ("Femal", *("F", "M") * 49, "F"))
    found = table_of(NumericColumn("lab", few), names, sex)
    assert "known for 20 of 100" in found[0] and "100 categories" in found[1] and "'other': Femal" in found[2]
