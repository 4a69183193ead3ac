"""The drawn studies: what each view shows, what the table says, where it is silent, and the shortcut."""

import csv
from dataclasses import replace
from math import log
from unittest.mock import patch

import numpy as np
import pytest

from configs.default_config import Config
from configs.errors import ConfigError
from data.builder import open_data
from data.phantom import studies
from data.phantom.findings import Spot
from data.phantom.radiographs import sample_shape, sample_shot
from data.phantom.studies import (
    CLASSES,
    COLUMNS,
    draw_studies,
    draw_view,
    is_drawn,
    table_log_odds,
    write_phantom_studies,
)
from utils.metrics import auroc

STRENGTHS = (0.1, 0.7)
ON_ONE_VIEW = [
    ("Hernia", 0.1, False, True),
    ("Hernia", 0.9, False, True),
    ("Pneumothorax", 0.1, True, False),
    ("Pneumothorax", 0.9, True, False),
    ("Effusion", 0.3, False, True),
    ("Effusion", 0.5, True, True),
    ("Pneumonia", 0.4, False, False),
    ("Pneumonia", 0.6, True, True),
    ("Cardiomegaly", 0.1, True, True),
]


def undrawn(count: int, **settings) -> list:
    """All that is known of many studies, whose images are not drawn."""
    with patch.object(studies, "draw", lambda shape, spots, shot, size: (np.zeros((size, size), np.uint8), {})):
        return list(draw_studies(count, 64, **settings))


@pytest.fixture(scope="module")
def many() -> list:
    return undrawn(3000)


@pytest.fixture(scope="module")
def with_shortcut() -> list:
    return undrawn(3000, shortcut=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("studies") / "drawn"
    write_phantom_studies(path, 20, 64)
    return path


def rows(path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("finding", "strength", "frontal", "lateral"), ON_ONE_VIEW)
def test_a_finding_is_on_the_views_that_are_said_and_changes_no_pixel_of_the_others(
    finding, strength, frontal, lateral
):
    rng = np.random.default_rng(3)
    shape, shot = sample_shape(rng, "F"), sample_shot(rng, True)
    spot = Spot(strength, 1, 1, 1.0, 5)
    for view, seen in (("PA", frontal), ("AP", frontal), ("LATERAL", lateral)):
        assert is_drawn(finding, strength, view) == seen
        with_it = draw_view({finding: spot}, shape, replace(shot, view=view), "north", 64)
        without = draw_view({}, shape, replace(shot, view=view), "north", 64)
        changed = np.abs(with_it.image.astype(int) - without.image.astype(int))
        assert (changed.max() > 8) == seen and (changed.max() == 0) == (not seen)
        assert list(with_it.masks) == [finding] * seen


def newton(x: np.ndarray, y: np.ndarray, steps: int = 12) -> np.ndarray:
    """Logistic regression with an intercept, in front."""
    x = np.column_stack([np.ones(len(x)), x])
    weights = np.zeros(x.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-x @ weights))
        weights += np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x, x.T @ (y - p))
    return weights


def known(study) -> list[float]:
    """Every value of the table, whether the table has it or not, in the units of the effects."""
    values = study.values
    traits = [(values["age"] - 60) / 10, values["sex"] == "M", values["smoker"] == "yes"]
    return [*traits, values["temperature"] - 36.8, values["spo2"] - 95, log(values["crp"] / 8)]


@pytest.mark.parametrize(
    ("finding", "effects"),
    [
        ("Cardiomegaly", [0.6, 0, 0, 0, 0, 0]),
        ("Effusion", [0, 0, 0, 0, 0, 0]),
        ("Hernia", [0, -1.2, 0, 0, 0, 0]),
        ("Pneumonia", [0, 0, 0, 1 / 0.36, 0, log(3)]),
        ("Pneumothorax", [0, 0, 1.2, 0, -2.5 / 2.25, 0]),
    ],
)
def test_a_logistic_regression_finds_the_effects_that_are_documented(finding, effects, many):
    x, y = np.array([known(study) for study in many]), np.array([finding in study.labels for study in many], float)
    found = newton(x, y)
    assert found[1:] == pytest.approx(effects, abs=0.3)
    best = np.array([table_log_odds(finding, study.values) for study in many])
    calibration = newton(best[:, None], y) if any(effects) else np.array([0, 1])
    assert calibration == pytest.approx([0, 1], abs=0.3)  # log odds as they are
    if any(effects):
        fitted = auroc(np.column_stack([np.ones(len(x)), x]) @ found, y)
        assert fitted == pytest.approx(auroc(best, y), abs=0.01) and auroc(best, y) > 0.58


def test_gaps_are_at_random_but_of_crp(many):
    there = [study for study in many if study.table]
    assert 1 - len(there) / len(many) == pytest.approx(0.05, abs=0.015)
    ill = np.array([not {"Pneumonia", "Effusion"}.isdisjoint(study.labels) for study in there])
    for name in COLUMNS:
        missing = np.array([study.table[name] is None for study in there])
        expected = (1 - 0.85 * 0.9, 1 - 0.85 * 0.4) if name == "crp" else (0.15, 0.15)
        assert (missing[ill].mean(), missing[~ill].mean()) == pytest.approx(expected, abs=0.035), name
    assert all(study.table[name] in (None, study.values[name]) for study in there for name in COLUMNS)


def test_the_shortcut_is_of_training_alone_and_changes_nothing_else(many, with_shortcut):
    def south(found, splits, ill):
        return np.mean([s.site == "south" for s in found if s.split in splits and ("Pneumonia" in s.labels) == ill])

    for ill in (True, False):
        assert south(many, ("train", "val", "test"), ill) == pytest.approx(0.5, abs=0.05)
        assert south(with_shortcut, ("test",), ill) == pytest.approx(0.5, abs=0.08)
        assert south(with_shortcut, ("train", "val"), ill) == pytest.approx(0.9 if ill else 0.1, abs=0.05)
    alike = [replace(study, site="", views=()) for study in many]
    assert alike == [replace(study, site="", views=()) for study in with_shortcut]


def test_the_mark_of_a_site_is_all_that_a_site_changes():
    rng = np.random.default_rng(3)
    shape, shot = sample_shape(rng, "F"), sample_shot(rng, True)
    north, south = (draw_view({}, shape, shot, site, 64).image for site in studies.SITES)
    changed = np.argwhere(north != south)
    assert len(changed) and changed.max() < 64 // 12 and (south[1:5, 1:5] == 250).all()


def test_a_study_does_not_depend_on_their_number_and_patients_stay_within_a_split(many):
    few = undrawn(50)
    assert [replace(s, views=()) for s in few] == [replace(s, views=()) for s in many[:50]]
    splits = {}
    for study in many:
        splits.setdefault(study.patient_id, set()).add(study.split)
    assert all(len(of_one) == 1 for of_one in splits.values())
    shares = [np.mean([study.split == name for study in many]) for name in ("train", "val", "test")]
    assert shares == pytest.approx([0.6, 0.15, 0.25], abs=0.04)
    views = [tuple(view.view for view in study.views) for study in many]
    lateral = np.mean(["LATERAL" in own for own in views])
    assert lateral == pytest.approx(0.6, abs=0.03) and all(views) and ("LATERAL",) in views


def test_files_say_what_was_drawn_and_are_the_same_again(folder, tmp_path):
    drawn = list(draw_studies(20, 64))
    labels, table = rows(folder / "labels.csv"), rows(folder / "clinical.csv")
    assert [row["study_id"] for row in table] == [study.name for study in drawn if study.table]
    assert len(labels) == sum(len(study.views) for study in drawn) == len(list((folder / "images").iterdir()))
    by_name = {study.name: study for study in drawn}
    for row in labels:
        assert {name for name in CLASSES if row[name] == "1"} == {*by_name[row["study_id"]].labels}
    for row in table:
        cells = by_name[row["study_id"]].table
        assert {name for name in COLUMNS if not row[name]} == {name for name in COLUMNS if cells[name] is None}
    write_phantom_studies(tmp_path / "again", 20, 64)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert all((folder / path).read_bytes() == (tmp_path / "again" / path).read_bytes() for path in files)


def test_the_sample_studies_are_drawn_where_they_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [
        "DATA.data_dir=./data/sample_chest_studies",
        "DATA.study_column=study_id",
        "DATA.sample_count=12",
        "DATA.sample_size=64",
        "DATA.table={file: clinical.csv, columns: [age, crp]}",
    ]
    plain = open_data(Config.from_overrides(given))
    marked = open_data(Config.from_overrides([*given, "DATA.sample_shortcut=true"]))
    assert plain.class_names == marked.class_names == CLASSES and len(plain.studies) == 12
    assert {path.name for path in (tmp_path / "data").iterdir() if path.is_dir()} == {
        "sample_chest_studies",
        "sample_chest_studies_shortcut",
    }
    assert [study.labels.tolist() for study in plain.studies] == [study.labels.tolist() for study in marked.studies]
    with pytest.raises(ConfigError, match=r"DATA\.sample_shortcut is of the drawn studies"):
        Config.from_overrides(["DATA.sample_shortcut=true"])
