"""Batches of studies: ragged images in order, gaps masked, what is random a function of (seed, epoch, study, view)."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from configs.default_config import Config
from configs.errors import DataError
from data.builder import build_evaluation_loader, build_loaders, open_data, resolve, saved_table, split_data
from data.loading.loaders import EpochBatchSampler, ImageLoader, Labels, UnreadableImages
from data.loading.studies import EncodedTable, StudyDataset, StudyDropout, StudyInputs, view_rng
from data.readers.volumes import Volume
from data.sources.image_files import FileReader
from data.study import IMAGE, DatasetIndex, Study, StudyImages, StudyReader
from data.transforms.device_augmentation import DeviceAugmentation
from data.transforms.images import LightAugmentation, Preprocess, sample_rng
from data.transforms.volumes import VolumePreprocess
from utils.batch import Inputs

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
SIZES = (1, 2, 3, 1, 2, 4, 1, 2)  # images of each study
STARTS = np.cumsum([0, *SIZES])
COUNT, F, SEED = len(SIZES), 3, 4
NAMES = tuple(f"{index:02d}.png" for index in range(STARTS[-1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("studies")
    for index, name in enumerate(NAMES):
        pixels = np.random.default_rng(index).integers(0, 256, (20, 24), dtype=np.uint8)
        assert cv2.imwrite(str(root / name), pixels)
    return root


@pytest.fixture
def damaged(folder, tmp_path):
    """A copy of the folder in which some images are cut short."""

    def damage(*indices: int) -> Path:
        for index, name in enumerate(NAMES):
            content = (folder / name).read_bytes()
            (tmp_path / name).write_bytes(content[: len(content) // 2] if index in indices else content)
        return tmp_path

    return damage


def index_of(root: Path) -> DatasetIndex:
    label = np.zeros(1, np.float32)
    images = DatasetIndex(("a",), tuple(Study(n, {IMAGE: n}, label) for n in NAMES), FileReader(root, NAMES))
    rows = tuple(tuple(range(start, start + size)) for start, size in zip(STARTS, SIZES))
    kinds = tuple(tuple((row + view) % 3 for view in range(len(own))) for row, own in enumerate(rows))
    together = StudyImages(images, rows, kinds, {"frontal": ("PA",), "lateral": ("L",)})
    studies = tuple(
        Study(f"s{row}", {f"v{view}": NAMES[image] for view, image in enumerate(own)}, label)
        for row, own in enumerate(rows)
    )
    return DatasetIndex(("a",), studies, StudyReader(together), images=together)


def table() -> EncodedTable:
    rng = np.random.default_rng(1)
    known = rng.random((COUNT, F)) < 0.7
    known[2] = False
    return EncodedTable(np.where(known, rng.normal(size=(COUNT, F)), 0).astype(np.float32), known)


def make_loader(root, workers=0, dropout=None, bad=None, augment=True, batch=3, shuffle=True, device=False, **other):
    preprocess = Preprocess((16, 16), 1, [0.5], [0.25], augmentation=LightAugmentation() if augment else None)
    transform = DeviceAugmentation(preprocess) if device else preprocess
    encoded = other.get("table", table())
    dataset = StudyDataset(index_of(root), StudyInputs(transform), SEED, encoded, dropout or StudyDropout())
    labels = Labels(np.arange(COUNT, dtype=np.float32)[:, None], np.ones((COUNT, 1), bool))
    batches = EpochBatchSampler(other.get("rows", np.arange(COUNT)), batch, shuffle, SEED)
    return ImageLoader(dataset, labels, batches, bad or UnreadableImages(0), workers)


def contents(loader, epoch: int, start: int = 0) -> list[tuple]:
    return [
        (number, *(tensor.numpy().tobytes() for tensor in (*batch.inputs, *batch.targets[:2], batch.index)))
        for number, batch in loader.epoch(epoch, start)
    ]


def by_study(loader, epoch: int = 0) -> dict[int, tuple]:
    """Row → its images [v, C, H, W], mask, kinds, values, known."""
    found = {}
    for _, batch in loader.epoch(epoch):
        inputs, counts = batch.inputs, batch.inputs.view_mask.sum(1).tolist()
        for row, images, *rest in zip(batch.index.tolist(), torch.split(inputs.image, counts), *inputs[1:]):
            found[row] = (images, *rest)
    return found


def test_images_follow_one_another_study_after_study(folder):
    loader = make_loader(folder, augment=False, shuffle=False)
    plain = Preprocess((16, 16), 1, [0.5], [0.25])
    images = index_of(folder).image_index
    for _, batch in loader.epoch(0):
        rows = batch.index.tolist()
        expected = [plain.apply(images, int(i)).image for row in rows for i in range(STARTS[row], STARTS[row + 1])]
        assert torch.equal(batch.inputs.image, torch.stack(expected))
        assert batch.inputs.view_mask.tolist() == [
            [view < SIZES[row] for view in range(max(SIZES[r] for r in rows))] for row in rows
        ]
        for row, kinds, mask in zip(rows, batch.inputs.view_kind, batch.inputs.view_mask):
            assert kinds[mask].tolist() == [(row + view) % 3 for view in range(SIZES[row])]
        assert batch.inputs.table.numpy().tobytes() == table().values[rows].tobytes()
        assert batch.inputs.table_mask.tolist() == table().known[rows].tolist()
        assert batch.targets.labels[:, 0].tolist() == rows
        assert len(batch) == len(rows) == batch.inputs.studies


def test_batches_can_be_cut_by_studies(folder):
    (_, batch), *_ = make_loader(folder, batch=8, device=True).epoch(0)
    parts = batch.split(3)
    assert [len(part.inputs.image) for part in parts] == [int(p.inputs.view_mask.sum()) for p in parts]
    assert torch.equal(torch.cat([part.inputs.image for part in parts]), batch.inputs.image)
    assert torch.equal(torch.cat([part.augmentation_params for part in parts]), batch.augmentation_params)
    finished = batch.to(torch.device("cpu"))
    assert finished.inputs.image.dtype == torch.float32 and len(finished.inputs.image) == sum(SIZES)


@pytest.mark.parametrize("dropout", [StudyDropout(), StudyDropout(0.4, 0.3)])
def test_workers_batches_and_beginning_change_nothing(folder, dropout):
    alone = contents(make_loader(folder, dropout=dropout), 2)
    assert contents(make_loader(folder, 2, dropout=dropout), 2) == alone
    assert contents(make_loader(folder, dropout=dropout), 2, 1) == alone[1:]
    together, single = (by_study(make_loader(folder, dropout=dropout, batch=size), 2) for size in (5, 1))
    for row, (images, mask, kinds, *rest) in together.items():
        one_images, one_mask, one_kinds, *one_rest = single[row]
        assert torch.equal(images, one_images) and torch.equal(mask[: SIZES[row]], one_mask)
        assert torch.equal(kinds[: SIZES[row]], one_kinds) and not mask[SIZES[row] :].any()
        assert all(torch.equal(a, b) for a, b in zip(rest, one_rest))


def test_the_first_image_is_augmented_as_ever_and_others_otherwise(folder):
    preprocess = Preprocess((16, 16), 1, [0.5], [0.25], augmentation=LightAugmentation())
    images = index_of(folder).image_index
    for row, (read, *_) in by_study(make_loader(folder), 3).items():
        first = preprocess.apply(images, int(STARTS[row]), sample_rng(SEED, 3, row)).image
        assert torch.equal(read[0], first)
    states = [view_rng(1, 2, 3, view).random() for view in (None, 0, 1, 2)]
    states += [view_rng(1, 2, 4, view).random() for view in (None, 0, 1)]
    states += [view_rng(1, 3, 3, view).random() for view in (None, 0, 1)]
    assert len(set(states)) == 10


def test_dropped_views_are_not_read_and_one_is_left(folder, monkeypatch):
    reads: list[int] = []
    read = FileReader.__call__
    monkeypatch.setattr(FileReader, "__call__", lambda self, index: reads.append(index) or read(self, index))
    kept = np.zeros(sum(SIZES))
    withheld = 0
    loader = make_loader(folder, dropout=StudyDropout(0.5, 0.25), augment=False)
    for epoch in range(60):
        reads.clear()
        found = by_study(loader, epoch)
        masks = {row: mask[: SIZES[row]].numpy() for row, (_, mask, *_) in found.items()}
        assert all(mask.any() for mask in masks.values())
        assert sorted(reads) == [int(STARTS[row]) + v for row in sorted(masks) for v in np.flatnonzero(masks[row])]
        kept += np.concatenate([masks[row] for row in range(COUNT)])
        withheld += sum(not known.any() for row, (*_, known) in found.items() if row != 2)
        assert all((values[~known] == 0).all() for *_, values, known in found.values())
    shares = [kept[start : start + size].mean() / 60 for start, size in zip(STARTS, SIZES)]
    for size, share in zip(SIZES, shares):  # of n views one is left where all n were dropped
        assert share == pytest.approx(0.5 + 0.5**size / size, abs=0.13)
    assert withheld / (60 * (COUNT - 1)) == pytest.approx(0.25, abs=0.05)  # 3 deviations of the binomial are 0.063


def test_each_view_may_be_the_one_that_is_left():
    """Where all were dropped: 0.8^3 of 4,000 draws, a third each; 3 deviations of the binomial are 0.031."""
    rng = np.random.default_rng(0)
    left = np.zeros(3)
    for _ in range(4000):
        kept, _ = StudyDropout(0.8).draw(rng, 3)
        left += kept if kept.sum() == 1 else 0
    np.testing.assert_allclose(left / left.sum(), 1 / 3, atol=0.031)


def test_evaluation_withholds_nothing(folder):
    one, other = (by_study(make_loader(folder, augment=False), epoch) for epoch in (0, 7))
    assert all(torch.equal(a, b) for row in one for a, b in zip(one[row], other[row]) if a.shape == b.shape)


def test_an_unreadable_image_is_a_view_that_is_missing(damaged):
    bad = UnreadableImages(2)
    root = damaged(int(STARTS[5]) + 1, int(STARTS[0]))  # one of four, and the only one of a study with a table
    found = by_study(make_loader(root, bad=bad, augment=False))
    assert found[5][1].tolist() == [True, False, True, True] and len(found[5][0]) == 3
    assert not found[0][1].any() and len(found[0][0]) == 0 and found[0][4].any()
    assert sorted(bad.reasons) == [0, STARTS[5] + 1]
    kinds = [(5 + view) % 3 for view in range(4)]
    assert found[5][2].tolist() == kinds
    with pytest.raises(DataError, match="max_bad_images allows 1"):
        by_study(make_loader(root, bad=UnreadableImages(1)))


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


def test_volumes_may_be_views():
    """Phases of one examination."""
    volumes = [Volume(np.random.default_rng(i).random((6, 7, 8), np.float32), np.eye(4)) for i in range(3)]
    label = np.zeros(1, np.float32)
    index = DatasetIndex(("a",), tuple(Study(f"{i}", {IMAGE: f"{i}"}, label) for i in range(3)), volumes.__getitem__)
    images = StudyImages(index, ((0, 1), (2,)), ((0, 1), (0,)), {"arterial": (), "venous": ()})
    studies = (Study("s", {"arterial": "0", "venous": "1"}, label), Study("t", {"arterial": "2"}, label))
    both = DatasetIndex(("a",), studies, StudyReader(images), images=images)
    dataset = StudyDataset(both, StudyInputs(VolumePreprocess((4, 4, 4), 1, [0.5], [0.25])), 0)
    inputs = dataset.transform.collate([dataset[0, 0].value, dataset[0, 1].value]).inputs
    assert inputs.image.shape == (3, 1, 4, 4, 4) and inputs.view_mask.tolist() == [[True, True], [True, False]]


def test_a_study_of_which_nothing_is_known_is_left_out(damaged):
    bad = UnreadableImages(9)
    root = damaged(*range(STARTS[2], STARTS[3]), STARTS[3])
    without = EncodedTable.none(COUNT)
    found = by_study(make_loader(root, bad=bad, table=without))
    assert sorted(found) == [0, 1, 4, 5, 6, 7] and len(bad.reasons) == 4
    (number, batch), *_ = make_loader(root, bad=UnreadableImages(9), table=without, rows=[2, 3], batch=2).epoch(0)
    assert (number, batch) == (0, None)


def test_a_view_that_was_withheld_is_read_where_the_others_cannot_be(damaged):
    root = damaged(int(STARTS[1]))
    loader = make_loader(root, dropout=StudyDropout(0.9), bad=UnreadableImages(1), rows=[1], batch=1)
    for epoch in range(20):
        (images, mask, *_) = by_study(loader, epoch)[1]
        assert mask.tolist() == [False, True] and len(images) == 1


@pytest.mark.parametrize("device", [False, True])
def test_a_batch_without_any_image(damaged, device):
    """Only their table is known of these studies."""
    root = damaged(STARTS[0], STARTS[3])
    loader = make_loader(root, bad=UnreadableImages(2), rows=[0, 3], batch=2, device=device)
    (_, batch), *_ = loader.epoch(0)
    finished = batch.to(torch.device("cpu"))
    assert finished.inputs.image.shape == (0, 1, 16, 16) and finished.inputs.image.dtype == torch.float32
    assert not finished.inputs.view_mask.any() and finished.inputs.table_mask.any(1).all()


def test_dropout_of_all_is_refused():
    with pytest.raises(ValueError, match="dropout of views"):
        StudyDropout(1.0)


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
