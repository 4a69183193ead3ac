"""From a Config to loaders, on small data of each kind."""

import csv
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from configs.default_config import Config
from configs.errors import DataError
from data.builder import build_loaders, open_data, split_data
from data.splits.assignment import write_split
from data.transforms.images import Preprocess

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
LEAKY = SHARED / "nih_leaky64"
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
SPLITS = ["train"] * 12 + ["val"] * 6 + ["test"] * 4


def write_data(folder: Path, rows: list[list[str]], splits: list[str] | None = None) -> Path:
    """rows: cells of classes a, b, c for each image."""
    (folder / "images").mkdir(parents=True)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "a", "b", "c", *(["split"] if splits else [])])
        for index, cells in enumerate(rows):
            name = f"images/{index:02d}.png"
            pixels = np.random.default_rng(index).integers(0, 256, (20, 24), dtype=np.uint8)
            assert cv2.imwrite(str(folder / name), pixels)
            writer.writerow([name, *cells, *([splits[index]] if splits else [])])
    return folder


@pytest.fixture(scope="module")
def rows() -> list[list[str]]:
    """Known, uncertain and unknown labels everywhere, both known kinds in each split."""
    rng = np.random.default_rng(0)
    cells = rng.choice(["1", "0", "-1", ""], (22, 3), p=[0.35, 0.35, 0.2, 0.1]).tolist()
    for first in (0, 12, 18):
        cells[first], cells[first + 1] = ["1", "0", "1"], ["0", "-1", "-1"]
    return cells


@pytest.fixture(scope="module")
def folder(tmp_path_factory, rows) -> Path:
    return write_data(tmp_path_factory.mktemp("builder") / "data", rows, SPLITS)


def config_of(folder: Path | None, *overrides: str) -> Config:
    locations = [f"DATA.data_dir={folder}"] if folder else []
    return Config.from_overrides(
        [*locations, "DATA.num_workers=0", "DATA.image_size=16", "TRAIN.batch_size=4", *overrides]
    )


def loaders_of(config: Config):
    dataset_index = open_data(config)
    resolved = config.resolve(dataset_index.class_names, dataset_index.exclusive)
    assignment = split_data(resolved, dataset_index)
    return dataset_index, build_loaders(resolved, dataset_index, assignment, MEAN, STD)


def codes(rows) -> np.ndarray:
    return np.array([[float(cell) if cell else np.nan for cell in row] for row in rows])


# ---- labels


@pytest.mark.parametrize("policy", ["ignore", "zeros", "ones", "smooth"])
def test_uncertain_labels_in_training_and_evaluation(folder, rows, policy):
    known = codes(rows)
    _, loaders = loaders_of(config_of(folder, f"DATA.uncertain_labels={policy}"))
    for loader, train in ((loaders.train, True), (loaders.val, False), (loaders.test, False)):
        batches = [batch for _, batch in loader.epoch(0)]
        assert sum(map(len, batches)) == len(loader.indices) > 0
        for batch in batches:
            columns = (batch.targets.labels.numpy(), batch.targets.mask.numpy(), batch.index.tolist())
            for target, mask, index in zip(*columns, strict=True):
                unsure, certain = known[index] == -1, np.isin(known[index], [0, 1])
                assert mask[certain].all() and (target[certain] == known[index][certain]).all()
                assert not mask[np.isnan(known[index])].any()
                counted = policy != "ignore" and (train or policy != "smooth")
                assert (mask[unsure] == counted).all()
                if policy == "smooth" and train:
                    assert ((target[unsure] >= 0.55) & (target[unsure] <= 0.85)).all()
                elif counted:
                    assert (target[unsure] == (policy == "ones")).all()


def test_train_labels_are_those_of_the_training_split(folder, rows):
    _, loaders = loaders_of(config_of(folder))
    labels, expected = loaders.train_labels(), codes(rows)[:12]
    assert (labels.mask == np.isin(expected, [0, 1])).all()
    assert (labels.target[labels.mask] == expected[labels.mask]).all()
    assert labels.target.shape == (12, 3)


@pytest.mark.parametrize("own", [False, True])
def test_coarse_labels(folder, rows, own):
    groups = ["MODEL.coarse_groups={first: [c, a], second: [b]}"] if own else []
    dataset_index, loaders = loaders_of(config_of(folder, "MODEL.hierarchical=true", *groups))
    assert dataset_index.class_names == ("a", "b", "c")
    assert [group.name for group in loaders.coarse_groups] == (
        ["first", "second"] if own else ["any finding", "no finding"]
    )
    known = codes(rows)
    columns = [[2, 0], [1]] if own else [[0, 1, 2], [0, 1, 2]]
    seen = 0
    for _, batch in loaders.train.epoch(0):
        for target, mask, index in zip(batch.targets.coarse, batch.targets.coarse_mask, batch.index.tolist()):
            for g, members in enumerate(columns):
                values = [float(known[index, k]) for k in members]
                present, complete = 1.0 in values, all(value in (0.0, 1.0) for value in values)
                assert bool(mask[g]) is (present or complete)
                if mask[g]:
                    assert float(target[g]) == (present if own or g == 0 else not present)
                    seen += 1
    assert seen > 10


def test_a_flat_model_has_no_coarse_labels(folder):
    _, loaders = loaders_of(config_of(folder))
    assert loaders.coarse_groups == () and next(loaders.train.epoch(0))[1].targets.coarse is None


# ---- images


def test_splits_batches_and_images(folder):
    dataset_index, loaders = loaders_of(config_of(folder))
    reference = Preprocess((16, 16), 3, MEAN, STD)
    for loader, rows_of, size in (
        (loaders.train, range(12), 4),
        (loaders.val, range(12, 18), 8),
        (loaders.test, range(18, 22), 8),
    ):
        batches = [batch for _, batch in loader.epoch(3)]
        index = torch.cat([batch.index for batch in batches]).tolist()
        train = loader is loaders.train
        assert sorted(index) == list(rows_of) and (index == list(rows_of)) is not train
        assert max(len(batch) for batch in batches) == min(size, len(rows_of)) and len(loader) == len(batches)
        for batch in batches:
            for image, row in zip(batch.inputs.image.numpy(), batch.index.tolist()):
                assert (image == reference(dataset_index.read(row))).all() is np.bool_(not train)
    again = [batch.inputs.image for _, batch in loaders.train.epoch(4)]
    assert not torch.equal(again[0], next(loaders.train.epoch(3))[1].inputs.image)


def test_settings_of_images_arrive(folder):
    overrides = ["DATA.augment=false", "DATA.mean=[0.1]", "DATA.std=[0.5]", "DATA.resize=letterbox"]
    dataset_index, loaders = loaders_of(config_of(folder, *overrides, "MODEL.in_channels=1"))
    reference = Preprocess((16, 16), 1, [0.1], [0.5], "letterbox")
    assert loaders.preprocess.as_dict() == reference.as_dict()
    batches = [batch for _, batch in loaders.train.epoch(0)]
    assert sum(map(len, batches)) == len(loaders.train.indices) > 0
    for batch in batches:
        for image, row in zip(batch.inputs.image.numpy(), batch.index.tolist(), strict=True):
            assert (image == reference(dataset_index.read(row))).all()


def test_mirror_images_only_where_asked_for(folder):
    """With a probability of 1 the warped image is nearer to the mirror image; with 0 never."""
    for flip, nearer in ((0, False), (1, True)):
        dataset_index, loaders = loaders_of(config_of(folder, f"DATA.horizontal_flip={flip}"))
        plain = {i: loaders.preprocess(dataset_index.read(i)) for i in range(12)}
        votes = []
        for _, batch in loaders.train.epoch(0):
            for image, row in zip(batch.inputs.image.numpy(), batch.index.tolist()):
                kept, mirrored = (np.abs(image - p).mean() for p in (plain[row], plain[row][:, :, ::-1]))
                votes.append(mirrored < kept)
        assert sum(votes) >= 9 if nearer else sum(votes) <= 3


@pytest.mark.parametrize(
    ("settings", "device_type", "on_device"),
    [
        ((), "cpu", False),
        ((), "cuda", True),
        (("DATA.augment_on=device",), "cpu", True),
        (("DATA.augment_on=cpu",), "cuda", False),
        (("DATA.augment=false",), "cuda", False),
        (("DATA.use_albumentations=true",), "cuda", False),
        (("DATA.image_size=[8,16,16]",), "cuda", False),
    ],
)
def test_where_images_are_augmented(folder, settings, device_type, on_device):
    dataset_index, config = open_data(config_of(folder)), config_of(folder, *settings)
    loaders = build_loaders(config, dataset_index, split_data(config, dataset_index), MEAN, STD, device_type)
    assert (loaders.train.dataset.transform.device_transform is not None) is on_device
    assert loaders.val.dataset.transform.device_transform is loaders.test.dataset.transform.device_transform is None


def test_on_the_device_the_same_images_are_augmented_alike(folder):
    """Workers round 16 x 16 grey levels of noise; normalised, half a level is 0.01."""
    by_device, by_worker = (loaders_of(config_of(folder, f"DATA.augment_on={on}"))[1] for on in ("device", "cpu"))
    for (_, one), (_, other) in zip(by_device.train.epoch(3), by_worker.train.epoch(3), strict=True):
        assert one.inputs.image.dtype == torch.uint8 and torch.equal(one.index, other.index)
        assert float((one.to(torch.device("cpu")).inputs.image - other.inputs.image).abs().mean()) < 0.01
    assert by_device.describe() == by_worker.describe()


def test_seed_changes_order_and_augmentation(folder):
    first, same, other = (
        [batch for _, batch in loaders_of(config_of(folder, f"TRAIN.seed={seed}"))[1].train.epoch(0)]
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(a.inputs.image, b.inputs.image) for a, b in zip(first, same, strict=True)) and first
    assert not all(torch.equal(a.index, b.index) for a, b in zip(first, other, strict=True))


def test_bad_images_are_counted_over_all_splits(tmp_path, rows):
    folder = write_data(tmp_path / "data", rows, SPLITS)
    for index in (2, 13, 19):
        path = folder / "images" / f"{index:02d}.png"
        path.write_bytes(path.read_bytes()[:100])
    _, loaders = loaders_of(config_of(folder, "DATA.max_bad_images=2"))
    assert sum(len(batch) for _, batch in loaders.train.epoch(0)) == 11
    assert sum(len(batch) for _, batch in loaders.val.epoch(0)) == 5
    with pytest.raises(DataError, match="3 images cannot be read") as error:
        list(loaders.test.epoch(0))
    assert all(f"{index:02d}.png" in str(error.value) for index in (2, 13, 19))


# ---- sources and splits


def test_sample_data_are_drawn_where_missing_and_only_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_of(None, "DATA.sample_count=24", "DATA.sample_size=64")
    dataset_index = open_data(config)
    assert len(dataset_index.studies) == 24 and len(dataset_index.class_names) == 14
    drawn = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert len(open_data(config_of(None, "DATA.data_dir=null", "DATA.sample_count=99")).studies) == 24
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == drawn
    with pytest.raises(DataError, match="elsewhere"):
        open_data(config_of(tmp_path / "elsewhere"))
    assert not (tmp_path / "elsewhere").exists()


def test_a_saved_split_is_used_again(folder, tmp_path):
    config = config_of(folder)
    dataset_index = open_data(config)
    shuffled = np.random.default_rng(0).permutation(SPLITS)
    write_split(tmp_path / "split.csv", dataset_index, shuffled)
    assert (split_data(config, dataset_index, tmp_path / "split.csv") == shuffled).all()
    assert split_data(config, dataset_index).tolist() == SPLITS


def test_an_empty_test_split_has_no_loader(tmp_path, rows, caplog):
    folder = write_data(tmp_path / "data", rows[:18], SPLITS[:18])
    _, loaders = loaders_of(config_of(folder))
    assert loaders.test is None and "test split is empty" in caplog.text


def test_one_of_many_from_a_table(tmp_path):
    exclusive = [["1", "0", "0"], ["0", "1", "0"], ["0", "0", "1"]] * 7
    splits = (["train"] * 12 + ["val"] * 6 + ["test"] * 3)[:21]
    folder = write_data(tmp_path / "good", exclusive, splits)
    assert not open_data(config_of(folder)).exclusive
    assert open_data(config_of(folder, "MODEL.task=multi_class")).exclusive
    wrong = [row.copy() for row in exclusive]
    wrong[4], wrong[9], wrong[11] = ["1", "1", "0"], ["0", "0", "0"], ["1", "0", "-1"]
    folder = write_data(tmp_path / "bad", wrong, splits)
    with pytest.raises(DataError, match="3 of 21 have none") as error:
        open_data(config_of(folder, "MODEL.task=multi_class"))
    assert all(name in str(error.value) for name in ("images/04.png", "images/09.png", "images/11.png"))


@pytest.mark.skipif(not LEAKY.is_dir(), reason="no ../shared/data/nih_leaky64 here")
def test_patients_in_two_splits_are_named():
    with (LEAKY / "labels.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    patients = {
        name: {row["patient_id"] for row in table if row["split"] == name} for name in ("train", "valid", "test")
    }
    shared = [
        patients["train"] & patients["valid"],
        patients["train"] & patients["test"],
        patients["valid"] & patients["test"],
    ]
    assert [len(names) for names in shared] == [15, 8, 9]
    config = config_of(LEAKY)
    with pytest.raises(DataError, match="allow_patient_overlap") as error:
        split_data(config, open_data(config))
    named = set(re.findall(r"nih\d+", str(error.value)))
    everyone = set.union(*shared)
    assert named <= everyone and len(named) == 10 and f"{len(everyone)} patients" in str(error.value)
    assert all(f"share {len(names)}" in str(error.value) for names in shared)
    allowed = config_of(LEAKY, "DATA.allow_patient_overlap=true")
    assert len(split_data(allowed, open_data(allowed))) == len(table)
