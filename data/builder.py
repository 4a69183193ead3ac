"""From a Config to dataset index, split and loaders: the only file of this folder that reads the config."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from configs.default_config import Config, DataSettings
from configs.errors import DataError
from configs.fallbacks import SAMPLE_IMAGES, SAMPLE_STUDIES, SAMPLE_VOLUMES, is_sample_studies
from configs.section import settled
from data.cache.building import Builder, cached_in_memory, cached_on_disk
from data.cache.reader import AnyPreprocess, cache_folder
from data.labels import CoarseGroup, apply_uncertain, coarse_targets, default_groups
from data.loading.loaders import EpochBatchSampler, ImageDataset, ImageLoader, Labels, UnreadableImages
from data.loading.mixing import Mixing
from data.loading.sampling import study_weights
from data.loading.studies import NO_DROPOUT, EncodedTable, StudyDataset, StudyDropout, StudyInputs
from data.loading.worker_watch import WorkerFailures
from data.phantom.radiographs import FINDINGS, write_phantom
from data.phantom.studies import write_phantom_studies
from data.phantom.volumes import write_phantom_volumes
from data.profile import TrainingDataRecord, describe_images
from data.readers.tables import TableSettings
from data.regions.taught import TaughtRegions, open_taught_regions
from data.sources.formats import open_source
from data.sources.identical_files import drawn_split_notes
from data.sources.studies import StudySettings, with_studies
from data.splits.assignment import assign_splits, read_split, split_of_file
from data.study import SPLITS, DatasetIndex
from data.table_encoding import TableEncoding, TableRecord
from data.transforms.device_augmentation import DeviceAugmentation
from data.transforms.guided import Guided
from data.transforms.images import AlbumentationsAugmentation, LightAugmentation, Preprocess, PreprocessRecord
from data.transforms.input_transform import AnyReadTransform, ImageTransform
from data.transforms.volumes import LightVolumeAugmentation, VolumePreprocess, VolumePreprocessRecord
from utils.claim import claimed

logger = logging.getLogger(__name__)

# Evaluation keeps no gradients, so that twice the batch fits.
EVALUATION_BATCH_FACTOR = 2
_SHORTCUT = "_shortcut"  # ends the name of the sample studies' folder of DATA.sample_shortcut


class LoadersRecord(TypedDict):
    """What checkpoints carry of a run's data. view_kinds, table: of studies of several views, or with a table."""

    preprocessing: PreprocessRecord | VolumePreprocessRecord
    training_data: TrainingDataRecord
    view_kinds: NotRequired[list[str]]
    table: NotRequired[TableRecord | None]


@dataclass(frozen=True)
class Loaders:
    """The loaders of a run; test is None where the split is empty. source: what they read from, without a cache.

    encoding: of the table, None without one.
    """

    train: ImageLoader
    val: ImageLoader
    test: ImageLoader | None
    preprocess: Preprocess | VolumePreprocess
    coarse_groups: tuple[CoarseGroup, ...]
    source: DatasetIndex
    encoding: TableEncoding | None = None

    def train_labels(self) -> Labels:
        """The labels of the training split alone."""
        return self.train.own_labels()

    def val_labels(self) -> Labels:
        """The labels of the validation split alone."""
        return self.val.own_labels()

    def describe(self) -> LoadersRecord:
        """For checkpoints: how an image becomes an input, and what the training images look like before that."""
        described = describe_images(self.train, isinstance(self.preprocess, VolumePreprocess), self.source)
        record: LoadersRecord = {"preprocessing": self.preprocess.as_dict(), "training_data": described}
        if self.source.images is not None:
            record["view_kinds"] = list(self.source.images.view_kinds)
            record["table"] = None if self.encoding is None else self.encoding.as_dict()
        return record


def open_data(config: Config, may_lack: Collection[str] = ()) -> DatasetIndex:
    """The dataset index that the DATA section names; sample data are drawn first where they are asked for and
    missing.

    may_lack: columns of DATA.table that count as unknown for all studies where they are not there.
    """
    data, volumes = config.complete().DATA, config.has_volumes()
    folder = _data_folder(data, volumes)
    _draw_sample_data(data, folder, volumes)
    class_names = data.class_names
    if class_names is None and not volumes and _is_sample(folder, volumes) and not _is_sample_study(folder):
        class_names = list(FINDINGS)  # however few images were drawn, of which none may have one of them
    dataset_index = open_source(
        folder,
        data.labels_file,
        data.format,
        class_names,
        data.allow_missing_images,
        volumes,
        data.check_duplicates,
        settings=table_settings(data),
    )
    dataset_index = with_studies(dataset_index, folder, replace(study_settings(data), may_lack=may_lack))
    for note in dataset_index.notes:
        logger.warning("%s", note)
    if config.MODEL.task == "multi_class" and not dataset_index.exclusive:
        dataset_index = _as_exclusive(dataset_index)
    return dataset_index


def resolve(config: Config, dataset_index: DatasetIndex) -> Config:
    """`Config.resolve` with all that these data decide: classes, kinds of view, kinds of columns."""
    images = dataset_index.images if config.DATA.study_column is not None else None
    columns = None if dataset_index.table is None else dataset_index.table.kinds
    resolved = config.resolve(
        dataset_index.class_names, dataset_index.exclusive, None if images is None else images.values, columns
    )
    if images is not None and resolved.DATA.max_views is None:
        resolved.DATA.max_views = max(map(len, images.rows))
    return resolved


def resolve_studies(config: Config, dataset_index: DatasetIndex, assignment: np.ndarray) -> Config:
    """A copy in which what a network of studies is built for is written out: kinds of view, and columns with their
    numbers of categories in the training split. Raises ConfigError where the settings leave a view or a table unused.
    """
    encoding = fit_table(config, dataset_index, assignment)
    images = dataset_index.images if config.DATA.study_column is not None else None  # else each is a single image
    views = None if images is None else images.view_kinds
    return config.resolve_studies(views, None if encoding is None else encoding.model_columns)


def study_dropout(config: Config) -> StudyDropout:
    """What training withholds, of what the network is given at all."""
    views, table = config.MODEL.views, config.MODEL.table
    return StudyDropout(views.dropout if views.aggregator else 0.0, table.dropout if table.fusion else 0.0)


def fit_table(config: Config, dataset_index: DatasetIndex, assignment: np.ndarray) -> TableEncoding | None:
    """How a network is given the table, from the training studies alone; None where there is no table.

    Raises DataError as `TableEncoding.fit` does.
    """
    if dataset_index.table is None:
        return None
    return TableEncoding.fit(dataset_index.table, np.flatnonzero(assignment == "train"), config.DATA.table.missing)


def _tell_of_table(encoding: TableEncoding, dataset_index: DatasetIndex, assignment: np.ndarray) -> None:
    assert dataset_index.table is not None
    logger.info("table, known in training studies: %s", encoding.describe())
    for split in SPLITS:
        rows = np.flatnonzero(assignment == split)
        for note in encoding.notes(dataset_index.table.rows(rows), split) if len(rows) else ():
            logger.warning("%s", note)


def table_settings(data: DataSettings) -> TableSettings:
    """What the settings say of tables."""
    ignored = data.ignore_columns or ()
    return TableSettings(data.encoding, data.columns or {}, ignored, data.patient_ids, data.study_column)


def study_settings(data: DataSettings) -> StudySettings:
    """What the settings say of studies."""
    return StudySettings(
        data.study_column,
        data.view_kinds,
        data.max_views,
        data.required_views,
        data.table.file,
        data.table.columns,
        data.encoding,
        _labels_of(data),
        data.columns,
    )


def _labels_of(data: DataSettings) -> str:
    """Where the labels table is, for messages; the data's folder where there is none."""
    folder = _data_folder(data, False)
    table = folder / (data.labels_file or "labels.csv")
    return str(table) if table.is_file() else data.labels_file or str(folder)


def asked_tables(overrides: Sequence[str]) -> TableSettings:
    """What a command's own overrides say of tables; those that a model was trained from were others."""
    keys = Config.override_keys(overrides)
    of_tables = [text for text, named in keys.items() if all(key in ("DATA.columns", "DATA.encoding") for key in named)]
    return table_settings(Config.from_overrides(of_tables).DATA)


def _data_folder(data: DataSettings, volumes: bool) -> Path:
    """data_dir, or the sample data of the kind that is trained on where it is null.

    Runs on volumes of before may name the sample images, which once stood for either kind.
    """
    data_dir = data.data_dir
    if data.sample_shortcut and is_sample_studies(data_dir):
        return Path(f"{data_dir}{_SHORTCUT}")
    if data_dir is None or (volumes and Path(data_dir) == Path(SAMPLE_IMAGES.folder)):
        return Path(SAMPLE_VOLUMES.folder if volumes else SAMPLE_IMAGES.folder)
    return Path(data_dir)


def undrawn_sample(config: Config) -> Path | None:
    """Where `open_data` would draw sample data first; None where the data are there, or are no sample data."""
    data, volumes = config.complete().DATA, config.has_volumes()
    folder = _data_folder(data, volumes)
    return folder if _is_sample(folder, volumes) and not folder.exists() else None


def _is_sample(folder: Path, volumes: bool) -> bool:
    if not volumes and _is_sample_study(folder):
        return True
    return folder.resolve() == Path(SAMPLE_VOLUMES.folder if volumes else SAMPLE_IMAGES.folder).resolve()


def _is_sample_study(folder: Path) -> bool:
    return folder.resolve() in {Path(SAMPLE_STUDIES.folder + end).resolve() for end in ("", _SHORTCUT)}


def _draw_sample_data(data: DataSettings, folder: Path, volumes: bool) -> None:
    """Make the sample data if `folder` is their place and is not there."""
    if folder.exists() or not _is_sample(folder, volumes):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with claimed(folder.parent, wait="drawing sample data"):
        if not folder.exists():  # else another first run has drawn them meanwhile
            _draw(data, folder, volumes)


def _draw(data: DataSettings, folder: Path, volumes: bool) -> None:
    count = settled(data.sample_count, "DATA.sample_count")
    size = settled(data.sample_size, "DATA.sample_size")
    studies = _is_sample_study(folder)
    what = "studies" if studies else "volumes" if volumes else "images"
    logger.info("drawing %d sample %s into %s", count, what, folder)
    if studies:
        write_phantom_studies(folder, count, size, shortcut=data.sample_shortcut)
        return
    (write_phantom_volumes if volumes else write_phantom)(folder, count, size)


def split_data(config: Config, dataset_index: DatasetIndex, saved: Path | None = None) -> np.ndarray:
    """'train', 'val' or 'test' for each image: as saved, as DATA.split_file or the data say, or drawn by patient."""
    if saved is not None:
        return read_split(saved, dataset_index)
    data = config.DATA
    if data.split_file is not None:
        assignment = split_of_file(Path(data.split_file), dataset_index, data.allow_patient_overlap)
    else:
        fractions = (data.train_split, data.val_split, data.test_split)
        assignment = assign_splits(dataset_index, fractions, config.TRAIN.seed, data.allow_patient_overlap)
    for note in drawn_split_notes(dataset_index, assignment):
        logger.warning("%s", note)
    counts = {split: int((assignment == split).sum()) for split in SPLITS}
    what = "images" if dataset_index.images is None else "studies"
    left = len(assignment) - sum(counts.values())
    beside = f", in none of them {left}" if left else ""
    logger.info("%s: %s%s", what, ", ".join(f"{split} {count}" for split, count in counts.items()), beside)
    if data.test_split > 0 and not counts["test"]:
        logger.warning("the test split is empty: results are reported on val")
    return assignment


def build_loaders(
    config: Config,
    dataset_index: DatasetIndex,
    assignment: np.ndarray,
    mean: Sequence[float],
    std: Sequence[float],
    device_type: str = "cpu",
    dropout: StudyDropout = NO_DROPOUT,
) -> Loaders:
    """Loaders of the three splits.

    config: resolved. mean, std: the backbone's normalisation, used where DATA.mean and DATA.std are null. device_type:
    of the device that trains. dropout: of views and table, in training.
    """
    evaluation = _preprocess(config, mean, std)
    training = _training_preprocess(config, mean, std, device_type) if config.DATA.augment else evaluation
    groups = _coarse_groups(config, dataset_index.class_names)
    bad = UnreadableImages(config.DATA.max_bad_images)
    failures = WorkerFailures(config.DATA.max_worker_failures, config.DATA.worker_timeout)
    encoding = fit_table(config, dataset_index, assignment)
    if encoding is not None:
        _tell_of_table(encoding, dataset_index, assignment)
    table = EncodedTable.of(encoding, dataset_index)

    regions = taught_regions(config, dataset_index)
    taught, scored = _guided_training(config, training, regions), _guided(evaluation, regions)

    def loader(split: str, studies: DatasetIndex) -> ImageLoader:
        train = split == "train"
        transform = taught if train else scored
        dataset = _dataset(studies, transform, config.TRAIN.seed, table, dropout if train else NO_DROPOUT)
        batch_size = config.TRAIN.batch_size * (1 if train else EVALUATION_BATCH_FACTOR)
        rows, labels = np.flatnonzero(assignment == split), _labels(config, dataset_index, groups, train)
        weights = _sampling(config, labels, rows) if train else None
        batches = EpochBatchSampler(rows, batch_size, train, config.TRAIN.seed, weights)
        pinned = device_type == "cuda"
        mixing = _mixing(config) if train else None
        return ImageLoader(dataset, labels, batches, bad, config.DATA.num_workers, pinned, failures, mixing)

    cached = dataset_index.with_image_index(_cached(config, loader("train", dataset_index), evaluation, bad))
    test = loader("test", cached) if (assignment == "test").any() else None
    return Loaders(loader("train", cached), loader("val", cached), test, evaluation, groups, dataset_index, encoding)


def _sampling(config: Config, labels: Labels, rows: np.ndarray) -> np.ndarray | None:
    """How often each training study is drawn; None: once."""
    rule, names = config.DATA.sampling, config.DATA.class_names or []
    if rule == "none":
        return None
    return study_weights(rule, labels.target[rows], labels.mask[rows], names, config.MODEL.task == "multi_class")


def _mixing(config: Config) -> Mixing | None:
    data = config.DATA
    if not (data.mixup or data.cutmix):
        return None
    return Mixing(config.TRAIN.seed, data.mixup, data.cutmix, data.mix_probability)


def taught_regions(config: Config, dataset_index: DatasetIndex) -> TaughtRegions | None:
    """What LOSS.attention names, for these data; None where it names nothing. See `open_taught_regions`."""
    attention, folder = config.LOSS.attention, _data_folder(config.DATA, config.has_volumes())
    return open_taught_regions(dataset_index, folder, attention.boxes, attention.masks)


def _guided(
    preprocess: Preprocess | VolumePreprocess, regions: TaughtRegions | None
) -> Preprocess | VolumePreprocess | Guided:
    """A preprocessing that gives regions beside the images; itself where there are none."""
    if regions is None or isinstance(preprocess, VolumePreprocess):
        return preprocess
    return Guided(preprocess, regions)


def _guided_training(
    config: Config,
    training: Preprocess | VolumePreprocess | DeviceAugmentation,
    regions: TaughtRegions | None,
) -> Preprocess | VolumePreprocess | DeviceAugmentation | Guided:
    """With what LOSS.attention.method asks for in training; as it is where it asks for nothing."""
    attention = config.LOSS.attention
    if not attention.trains or isinstance(training, VolumePreprocess):
        return training
    if attention.method == "consistency":
        return Guided(training, None, second=True)
    assert regions is not None, "mask and cam have regions, see configs/attention_settings.py"
    return Guided(training, regions.united() if attention.method == "mask" else regions)


def _dataset(
    dataset_index: DatasetIndex,
    transform: ImageTransform,
    seed: int,
    table: EncodedTable | None = None,
    dropout: StudyDropout = NO_DROPOUT,
) -> ImageDataset[AnyReadTransform]:
    """Of studies of several images, or with a table, or of single images."""
    if dataset_index.images is None:
        return ImageDataset(dataset_index, transform, seed)
    return StudyDataset(dataset_index, StudyInputs(transform), seed, table, dropout)


def _cached(config: Config, loader: ImageLoader, preprocess: AnyPreprocess, bad: UnreadableImages) -> DatasetIndex:
    """The loader's images, a row each, decoded once as DATA.cache says; by the loader's workers."""
    data = config.DATA
    if data.cache == "none":
        return loader.dataset.dataset_index.image_index
    builder = Builder(loader, preprocess, bad, config.LOGGING.progress, with_content=data.cache == "disk")
    if data.cache == "ram":
        return cached_in_memory(builder)
    source = _data_folder(data, config.has_volumes())
    return cached_on_disk(builder, cache_folder(data.cache_dir, source), source, data.cache_check == "content")


def saved_preprocess(
    saved: Mapping[str, object] | None, config: Config, mean: Sequence[float], std: Sequence[float]
) -> Preprocess | VolumePreprocess:
    """What a checkpoint says of its preprocessing; where it says nothing, what its settings and the backbone do.

    saved: `as_dict` of one or None. Raises ConfigError where it is of other data than the settings' image_size.
    """
    if saved is None:
        return _preprocess(config, mean, std)
    return (VolumePreprocess if config.has_volumes() else Preprocess).from_dict(saved)


def saved_table(saved: Mapping[str, object] | None) -> TableEncoding | None:
    """What a checkpoint says of its table: `LoadersRecord.table`; None where it says that there is none, or nothing.

    Raises CheckpointError for anything else.
    """
    return None if saved is None else TableEncoding.from_dict(saved)


def evaluation_labels(config: Config, dataset_index: DatasetIndex) -> Labels:
    """Labels of the whole dataset index as they are scored: DATA.uncertain_labels, but never soft ones."""
    return _labels(config, dataset_index, (), train=False)


def build_evaluation_loader(
    config: Config,
    dataset_index: DatasetIndex,
    rows: np.ndarray,
    preprocess: Preprocess | VolumePreprocess,
    pin_memory: bool = False,
    encoding: TableEncoding | None = None,
    tell: bool = True,
    regions: TaughtRegions | None = None,
) -> ImageLoader:
    """A loader of some rows of a dataset index, in their order, without augmentation.

    encoding: of the model's table, see `saved_table`; what in these rows is unlike training is logged, if `tell`.
    regions: what batches have of them beside the images, see `taught_regions`.
    Raises DataError where the data lack its columns.
    """
    table = EncodedTable.of(encoding, dataset_index)
    if tell and encoding is not None and dataset_index.table is not None:
        for note in encoding.notes(dataset_index.table.rows(rows), "the data"):
            logger.warning("%s", note)
    transform = _guided(preprocess, regions)
    dataset = _dataset(dataset_index, transform, config.TRAIN.seed, table)
    batches = EpochBatchSampler(rows, config.TRAIN.batch_size * EVALUATION_BATCH_FACTOR, False, config.TRAIN.seed)
    failures = WorkerFailures(config.DATA.max_worker_failures, config.DATA.worker_timeout)
    bad = UnreadableImages(config.DATA.max_bad_images)
    labels = evaluation_labels(config, dataset_index)
    return ImageLoader(dataset, labels, batches, bad, config.DATA.num_workers, pin_memory, failures)


def _preprocess(
    config: Config, mean: Sequence[float], std: Sequence[float], augmentation=None
) -> Preprocess | VolumePreprocess:
    data, size, channels = config.DATA, config.image_shape(), config.MODEL.in_channels
    mean, std = data.mean or mean, data.std or std
    if config.has_volumes():
        return VolumePreprocess(size, channels, mean, std, data.spacing_mm, data.window, augmentation)
    return Preprocess(size, channels, mean, std, data.resize, augmentation)


def _training_preprocess(
    config: Config, mean: Sequence[float], std: Sequence[float], device_type: str
) -> Preprocess | VolumePreprocess | DeviceAugmentation:
    """With the augmentation: all of it in the workers, or its second half left to the device that trains."""
    data = config.DATA
    preprocess = _preprocess(config, mean, std, _augmentation(config))
    wanted = data.augment_on == "device" or (data.augment_on == "auto" and device_type == "cuda")
    if wanted and isinstance(preprocess, Preprocess) and not data.use_albumentations:
        return DeviceAugmentation(preprocess)
    return preprocess


def _augmentation(config: Config) -> LightAugmentation | AlbumentationsAugmentation | LightVolumeAugmentation:
    if config.has_volumes():
        return LightVolumeAugmentation(horizontal_flip=config.DATA.horizontal_flip)
    make = AlbumentationsAugmentation if config.DATA.use_albumentations else LightAugmentation
    return make(horizontal_flip=config.DATA.horizontal_flip)


def _labels(config: Config, dataset_index: DatasetIndex, groups: Sequence[CoarseGroup], train: bool) -> Labels:
    """Soft targets are for training; scores of an uncertain label mean nothing."""
    policy = config.DATA.uncertain_labels
    policy = "ignore" if policy == "smooth" and not train else policy
    target, mask = apply_uncertain(dataset_index.label_matrix(), policy, config.TRAIN.seed)
    coarse = coarse_targets(target, mask, groups) if groups else (None, None)
    return Labels(target, mask, *coarse)


def _coarse_groups(config: Config, class_names: Sequence[str]) -> tuple[CoarseGroup, ...]:
    if not config.MODEL.hierarchical:
        return ()
    groups = config.MODEL.coarse_groups
    if not groups:
        return default_groups(class_names)
    return tuple(CoarseGroup(name, tuple(class_names.index(m) for m in members)) for name, members in groups.items())


def _as_exclusive(dataset_index: DatasetIndex) -> DatasetIndex:
    """A labels table for one-of-many training: each row must name exactly one class."""
    labels = dataset_index.label_matrix()
    wrong = np.flatnonzero(~(((labels == 1).sum(1) == 1) & ((labels == 0).sum(1) == labels.shape[1] - 1)))
    if len(wrong):
        names = ", ".join(dataset_index.studies[i].name for i in wrong[:5])
        raise DataError(
            f"MODEL.task 'multi_class' needs exactly one class per image; {len(wrong)} of {len(labels)} have none, "
            f"several or an unsure one ({names}, …): use MODEL.task=multi_label, or correct the labels"
        )
    return replace(dataset_index, exclusive=True)
