"""From a Config to loaders of studies: the table's encoding, caches, and what other data are told."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from configs.default_config import Config
from configs.errors import DataError
from data.builder import build_evaluation_loader, build_loaders, open_data, resolve, saved_table, split_data
from data.loading.studies import StudyDropout
from tests.data.loading.test_studies import by_study, contents
from utils.batch import Inputs

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
LABELS = ["image,study_id,patient_id,view,split,A,age,sex"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """30 studies of 1 to 3 images, 20 of them of training, with age and sex."""
    root = tmp_path_factory.mktemp("data")
    rng, lines = np.random.default_rng(0), [*LABELS]
    for study in range(30):
        age = "" if study % 7 == 0 else str(30 + study)
        for view in range(1 + study % 3):
            name = f"{study:02d}_{view}.png"
            assert cv2.imwrite(str(root / name), rng.integers(0, 256, (20, 24), dtype=np.uint8))
            kind = ("PA", "lateral", "PA")[view]
            split, label = "train" if study < 20 else "val", study % 2
            lines.append(f"{name},s{study},p{study},{kind},{split},{label},{age},{'FM'[study % 2]}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


def config_of(root: Path, *overrides: str) -> Config:
    own = ("DATA.study_column=study_id", "DATA.table.columns=[age, sex]", "DATA.class_names=[A]")
    fixed = ("DATA.num_workers=0", "DATA.image_size=16", "TRAIN.batch_size=4", "DATA.augment_on=cpu")
    return Config.from_overrides([f"DATA.data_dir={root}", *fixed, *own, *overrides])


def loaders_of(config: Config, dropout: StudyDropout | None = None):
    found = open_data(config)
    config = resolve(config, found)
    loaders = build_loaders(
        config, found, split_data(config, found), [0.5] * 3, [0.25] * 3, dropout=dropout or StudyDropout()
    )
    return config, found, loaders


def all_batches(loader, epochs=(0, 1)) -> list[tuple]:
    return [batch for epoch in epochs for batch in contents(loader, epoch)]


def test_from_a_config_to_loaders(data):
    config, found, loaders = loaders_of(config_of(data))
    assert config.DATA.view_kinds == {"lateral": ["lateral"], "PA": ["PA"]}
    assert config.DATA.table.columns == {"age": "numeric", "sex": "categorical"}
    assert loaders.encoding.model_columns == {"age": "numeric", "sex": 2}
    record = loaders.describe()
    assert record["view_kinds"] == ["lateral", "PA", "other"] and record["training_data"]["of"] == 39
    assert record["training_data"]["views"] == {"PA": 26, "LATERAL": 13}
    assert saved_table(record["table"]) == loaders.encoding
    ages = np.array([30 + study for study in range(20) if study % 7])
    assert (loaders.encoding.columns[0].mean, loaders.encoding.columns[0].std) == (ages.mean(), ages.std())
    found_rows = by_study(loaders.val)
    assert sorted(found_rows) == list(range(20, 30))
    assert found_rows[22][3][0] == pytest.approx((52 - ages.mean()) / ages.std()) and not found_rows[21][4][0]
    evaluation = build_evaluation_loader(config, found, np.arange(20, 30), loaders.preprocess, False, loaders.encoding)
    assert all_batches(evaluation) == all_batches(loaders.val)


def test_only_training_withholds_views_and_table(data):
    _, _, loaders = loaders_of(config_of(data, "DATA.augment=false"), StudyDropout(0.7, 0.7))
    _, _, plain = loaders_of(config_of(data, "DATA.augment=false"))
    assert all_batches(loaders.val) == all_batches(plain.val)
    (trained, whole) = (sum(len(b.inputs.image) for _, b in one.train.epoch(0)) for one in (loaders, plain))
    assert trained < whole == 39


def test_other_cells_change_no_training_batch(data, tmp_path):
    """STUDIES 5 j: 1e6 in every cell of val and a new category there."""
    text = (data / "labels.csv").read_text()
    rows = [line.split(",") for line in text.splitlines()]
    changed = [[*row[:6], "1e6", "new"] if row[4] == "val" else row for row in rows]
    for path in data.glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "labels.csv").write_text("\n".join(map(",".join, changed)) + "\n")
    dropout = StudyDropout(0.3, 0.3)
    (_, _, one), (_, _, other) = (loaders_of(config_of(root), dropout) for root in (data, tmp_path))
    assert one.describe()["table"] == other.describe()["table"]
    assert all_batches(one.train) == all_batches(other.train) != []


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_a_cache_of_images_gives_the_same_studies(data, cache, tmp_path):
    folder = [f"DATA.cache_dir={tmp_path}"] if cache == "disk" else []
    _, _, plain = loaders_of(config_of(data), StudyDropout(0.2, 0.2))
    for _ in range(2):
        _, _, cached = loaders_of(config_of(data, f"DATA.cache={cache}", *folder), StudyDropout(0.2, 0.2))
        assert all_batches(cached.train) == all_batches(plain.train)
        assert all_batches(cached.val) == all_batches(plain.val)


def test_studies_of_one_image_without_a_table_are_as_single_images(data, tmp_path):
    """Training batches bit for bit: order, augmentation, labels."""
    lines = [LABELS[0], *(line for line in (data / "labels.csv").read_text().splitlines() if "_0.png" in line)]
    for path in data.glob("*_0.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    none = "DATA.table.columns=[]"
    _, _, studies = loaders_of(config_of(tmp_path, none, "DATA.view_kinds={}"))
    _, _, images = loaders_of(config_of(tmp_path, none, "DATA.study_column=null"))
    assert images.train.dataset.dataset_index.images is None and "table" not in images.describe()
    assert all_batches(studies.train) == all_batches(images.train)
    assert all_batches(studies.val) == all_batches(images.val)
    assert isinstance(next(iter(studies.val.epoch(0)))[1].inputs, Inputs)


def test_evaluation_data_without_the_models_table_are_refused(data):
    config, _, loaders = loaders_of(config_of(data))
    without = open_data(config_of(data, "DATA.table.columns=[]"))
    with pytest.raises(DataError, match=r"trained with a table \(age, sex\)"):
        build_evaluation_loader(config, without, np.arange(3), loaders.preprocess, False, loaders.encoding)
    with pytest.raises(DataError, match="have no sex"):
        fewer = open_data(config_of(data, "DATA.table.columns=[age]"))
        build_evaluation_loader(config, fewer, np.arange(3), loaders.preprocess, False, loaders.encoding)


def test_what_is_unlike_training_is_told(data, tmp_path, caplog):
    config, _, loaders = loaders_of(config_of(data))
    text = (data / "labels.csv").read_text().replace(",51,M", ",5100,X")
    for path in data.glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "labels.csv").write_text(text)
    other = open_data(config_of(tmp_path))
    caplog.clear()
    build_evaluation_loader(config, other, np.arange(30), loaders.preprocess, False, loaders.encoding)
    assert "5100" not in caplog.text  # study 21's age is unknown
    (tmp_path / "labels.csv").write_text((data / "labels.csv").read_text().replace(",52,F", ",5200,X"))
    other = open_data(config_of(tmp_path))
    build_evaluation_loader(config, other, np.arange(30), loaders.preprocess, False, loaders.encoding)
    assert "5200" in caplog.text and "another unit" in caplog.text and "'X' (1)" in caplog.text


@pytest.mark.skipif(not (SHARED / "covid_studies").is_dir(), reason="../shared/data/covid_studies is not there")
def test_real_studies_load_with_their_gaps():
    columns = "{age: numeric, sex: categorical, days_since_onset: numeric, spo2_percent: numeric}"
    kinds = "DATA.view_kinds={frontal: [PA, AP, AP supine], lateral: [lateral]}"
    config = Config.from_overrides(
        [f"DATA.data_dir={SHARED / 'covid_studies'}", "DATA.study_column=study_id", kinds, "DATA.max_views=5"]
        + [f"DATA.table={{file: clinical.csv, columns: {columns}}}", "DATA.num_workers=0", "DATA.image_size=32"]
    )
    _, _, loaders = loaders_of(config)
    images = 0
    for loader, studies in ((loaders.train, 197), (loaders.val, 96)):
        batches = [batch for _, batch in loader.epoch(0)]
        assert sum(map(len, batches)) == studies
        for batch in batches:
            assert len(batch.inputs.image) == int(batch.inputs.view_mask.sum())
            assert all(torch.isfinite(t.float()).all() for t in batch.inputs)
        images += sum(len(batch.inputs.image) for batch in batches)
    assert images == 358 and loaders.encoding.studies == 197
    rare = Config.from_values(config.model_dump(), ["DATA.table.columns={leukocytes: numeric, age: numeric}"])
    with pytest.raises(DataError, match=r"'leukocytes' \((always|no known)"):
        loaders_of(rare)


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_an_unreadable_image_of_a_cache_is_a_view_that_is_missing(data, cache, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    for path in data.iterdir():
        (root / path.name).write_bytes(path.read_bytes()[:40] if path.name == "02_1.png" else path.read_bytes())
    overrides = (f"DATA.cache={cache}", "DATA.max_bad_images=1", "DATA.augment=false")
    _, _, loaders = loaders_of(config_of(root, *overrides))
    images, mask, *_ = by_study(loaders.train)[2]
    assert mask.tolist() == [True, False, True] and len(images) == 2
    with pytest.raises(DataError, match="max_bad_images allows 0"):
        _, _, loaders = loaders_of(config_of(root, "DATA.augment=false"))
        by_study(loaders.train)
