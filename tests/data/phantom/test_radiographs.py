"""The built-in sample data: reproducible, labelled as drawn, and read back as written."""

import csv
import hashlib
from collections import Counter
from dataclasses import replace
from unittest.mock import patch

import cv2
import numpy as np
import pytest

from data.phantom import radiographs
from data.phantom.findings import Spot
from data.phantom.layers import Shape
from data.phantom.radiographs import FINDINGS, draw_images, write_phantom

VIEWS = ("PA", "AP", "LATERAL")


def digest(images):
    whole = hashlib.sha256()
    for image in images:
        whole.update(image.image.tobytes())
        whole.update("|".join(image.labels).encode())
        for mask in image.masks.values():
            whole.update(mask.tobytes())
    return whole.hexdigest()


@pytest.fixture(scope="module")
def series():
    return list(draw_images(100, 64))


@pytest.fixture(scope="module")
def many():
    """All that is known about 600 images, which are not drawn."""

    def leave_out(shape, spots, shot, size):
        return None, {name: None for name in FINDINGS if name in spots}

    with patch.object(radiographs, "draw", leave_out):
        return list(draw_images(600, 64))


@pytest.fixture(scope="module")
def label_matrix(many):
    return np.array([[name in image.labels for name in FINDINGS] for image in many])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("sample") / "deep" / "phantom"
    write_phantom(target, count=24, size=64, seed=3)
    return target


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def plain_shot(view):
    return radiographs.Shot(view, 1.5, 1.02, (0.01, -0.01), 0.02, 0.9, 1.0, 0.02, seed=5)


def test_same_arguments_give_the_same_bytes():
    assert digest(draw_images(12, 96, 7)) == digest(draw_images(12, 96, 7))


def test_another_seed_gives_other_images():
    assert digest(draw_images(6, 64, 0)) != digest(draw_images(6, 64, 1))


def test_an_image_does_not_depend_on_the_count(series):
    assert digest(draw_images(20, 64)) == digest(series[:20])


@pytest.mark.parametrize("size", [64, 100, 512])
def test_images_and_masks_have_the_size_asked_for(size):
    for image in draw_images(3, size, 2):
        assert image.image.shape == (size, size) and image.image.dtype == np.uint8
        assert all(m.shape == (size, size) and m.dtype == bool for m in image.masks.values())


@pytest.mark.parametrize("arguments", [(1, 63), (1, 513), (-1, 64), (1, 64, -1)])
def test_arguments_out_of_range_are_refused_at_the_call(arguments):
    with pytest.raises(ValueError, match=r"size \d+|count -?\d+"):
        draw_images(*arguments)


def test_tables_name_the_findings():
    assert len(FINDINGS) == 14
    assert tuple(radiographs.ONSET) == FINDINGS
    named = set(radiographs.COMPANIONS) | set(radiographs.LOCAL) | set(radiographs.MALE_ODDS)
    named |= set(radiographs.PAINT_ORDER) | {n for c in radiographs.COMPANIONS.values() for n in c}
    assert named <= set(FINDINGS)


def test_every_finding_is_common_but_not_too_common(label_matrix):
    prevalence = dict(zip(FINDINGS, label_matrix.mean(axis=0), strict=True))
    assert all(0.05 <= p <= 0.25 for p in prevalence.values()), prevalence
    assert 0.2 <= (~label_matrix.any(axis=1)).mean() <= 0.35


def test_findings_go_together_as_in_patients():
    """Counted over many patients without drawing: images are too few for rare pairs."""
    patients = [radiographs.sample_patient(0, number) for number in range(3000)]
    has = {name: np.array([name in p.spots for p in patients]) for name in FINDINGS}

    def correlation(a, b):
        return np.corrcoef(has[a], has[b])[0, 1]

    for a, b in (
        ("Cardiomegaly", "Edema"),
        ("Cardiomegaly", "Effusion"),
        ("Edema", "Effusion"),
        ("Effusion", "Atelectasis"),
        ("Pneumonia", "Infiltration"),
        ("Pneumonia", "Consolidation"),
        ("Emphysema", "Pneumothorax"),
        ("Fibrosis", "Pleural_Thickening"),
    ):
        assert correlation(a, b) > 0.05, (a, b)
    assert correlation("Emphysema", "Cardiomegaly") < 0
    age = np.array([p.age for p in patients])
    for name in ("Cardiomegaly", "Emphysema", "Fibrosis", "Hernia"):
        assert age[has[name]].mean() > age.mean() + 1, name


def test_labels_are_those_of_what_is_drawn(series, many):
    assert len(series) == 100
    assert [image.labels for image in series] == [image.labels for image in many[: len(series)]]


def test_masks_are_the_labels_and_not_empty(series):
    assert {name for image in series for name in image.masks} == set(FINDINGS)
    for image in series:
        assert tuple(image.masks) == image.labels
        assert all(mask.any() and not mask.all() for mask in image.masks.values())
        assert image.labels == tuple(sorted(image.labels, key=FINDINGS.index))


def test_patients_have_one_to_four_images_in_a_row(many):
    counts = Counter(image.patient_id for image in many)
    assert set(counts.values()) == {1, 2, 3, 4}
    ids = [image.patient_id for image in many]
    assert len({k for k in range(1, len(ids)) if ids[k] != ids[k - 1]}) == len(counts) - 1
    about = {(p.patient_id, p.age, p.sex) for p in many}
    assert len(about) == len(counts)


def test_views_sexes_and_ages(many):
    views = Counter(image.view for image in many)
    assert set(views) == set(VIEWS)
    assert 0.12 <= views["LATERAL"] / len(many) <= 0.23
    assert {image.sex for image in many} == {"M", "F"}
    assert all(18 <= image.age <= 92 for image in many)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", FINDINGS)
def test_a_finding_is_seen_where_its_mask_says(name, view):
    """Even the weakest one, in every place: against the same image without it."""
    shape, shot = Shape(seed=11), plain_shot(view)
    clean, none = radiographs.draw(shape, {}, shot, 128)
    moves_the_chest = name == "Emphysema"
    assert none == {}
    for side, zone in ((-1, 0), (-1, 1), (-1, 2), (1, 0), (1, 1), (1, 2)):
        spot = Spot(strength=0.0, side=side, zone=zone, scale=0.85, seed=zone)
        image, masks = radiographs.draw(shape, {name: spot}, shot, 128)
        change = np.abs(image.astype(int) - clean.astype(int))
        inside, outside = change[masks[name]], change[~masks[name]]
        assert inside.max() >= 15, (side, zone)
        assert inside.mean() > (1.2 if moves_the_chest else 2) * outside.mean(), (side, zone)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", FINDINGS)
def test_more_strength_changes_more(name, view):
    shape, shot = Shape(seed=12), plain_shot(view)
    clean = radiographs.draw(shape, {}, shot, 96)[0].astype(int)
    weak = Spot(strength=0.0, side=1, zone=1, scale=1.0, seed=3)
    changes = [
        np.abs(radiographs.draw(shape, {name: spot}, shot, 96)[0] - clean).sum()
        for spot in (weak, replace(weak, strength=1.0))
    ]
    assert changes[1] > (1.05 if name == "Cardiomegaly" else 1.0) * changes[0]


def test_the_chest_is_a_chest():
    """Lungs darker than heart, spine and abdomen; black air around the neck."""
    image, _ = radiographs.draw(Shape(seed=1), {}, plain_shot("PA"), 128)
    right_lung, left_lung = image[60:70, 28:38].mean(), image[60:70, 90:100].mean()
    heart, abdomen, air = image[80:88, 72:80].mean(), image[112:, 40:60].mean(), image[2, 2]
    assert max(right_lung, left_lung) + 60 < min(heart, abdomen)
    assert air < right_lung


def test_boxes_bound_each_part_of_a_mask():
    mask = np.zeros((64, 64), bool)
    mask[3:6, 10:20] = mask[40:42, 50:51] = True
    assert sorted(radiographs.boxes(mask)) == [(10, 3, 10, 3), (50, 40, 1, 2)]


def test_written_folder_is_complete(folder):
    labels = rows(folder / "labels.csv")
    assert list(labels[0]) == ["image", "labels", "patient_id", "view", "age", "sex"]
    written = {f"images/{path.name}" for path in (folder / "images").iterdir()}
    assert written == {row["image"] for row in labels} and len(labels) == 24
    assert {row["view"] for row in labels} <= set(VIEWS)
    named = {name for row in labels for name in row["labels"].split("|")}
    assert named <= {*FINDINGS, "No Finding"}
    readme = (folder / "README.txt").read_text("utf-8").lower()
    assert "synthetic" in readme and "boxes.csv" in readme


def test_written_folder_holds_the_drawn_images(folder):
    labels = rows(folder / "labels.csv")
    for row, image in zip(labels, draw_images(24, 64, 3), strict=True):
        written = cv2.imread(str(folder / row["image"]), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(written, image.image)
        assert row["labels"] == ("|".join(image.labels) or "No Finding")
        path = folder / row["image"].replace("images/", "masks/")
        assert path.exists() == bool(image.labels)
        if image.labels:
            bits = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            assert bits.dtype == np.uint16
            for k, name in enumerate(FINDINGS):
                expected = image.masks.get(name, np.zeros((64, 64), bool))
                np.testing.assert_array_equal((bits >> k) & 1, expected)


def test_written_boxes_cover_the_masks(folder):
    covered = {}
    for row in rows(folder / "boxes.csv"):
        x, y, w, h = (int(row[key]) for key in "xywh")
        assert x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= 64 and y + h <= 64
        area = covered.setdefault((row["image"], row["finding"]), np.zeros((64, 64), bool))
        area[y : y + h, x : x + w] = True
    labels = rows(folder / "labels.csv")
    for row, image in zip(labels, draw_images(24, 64, 3), strict=True):
        for name, mask in image.masks.items():
            assert not (mask & ~covered.pop((row["image"], name))).any()
    assert covered == {}


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="remove it, or give another folder"):
        write_phantom(tmp_path, count=1, size=64)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_writing_leaves_nothing(tmp_path, monkeypatch, error):
    save, calls = radiographs.save_png, []

    def stop_at_fifth(path, pixels):
        calls.append(path)
        if len(calls) == 5:
            raise error("stopped")
        save(path, pixels)

    monkeypatch.setattr(radiographs, "save_png", stop_at_fifth)
    with pytest.raises(error):
        write_phantom(tmp_path / "phantom", count=10, size=64)
    assert list(tmp_path.iterdir()) == []
