"""A trained network from a run's folder or a file, to be asked: `from_pretrained`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from configs.default_config import Config
from configs.errors import DataError, OwnLoaderError, PredictionError
from configs.followed import PREDICT
from data.asked import Asked, AskedModel
from data.asked_images import AskedImages, different, input_numbers
from data.cache.reader import AnyPreprocess
from data.joint_inputs import JointPreprocess, UnreadableInputs, unlabelled_loader
from data.profile import Traits
from data.readers.volumes import Volume
from data.sources.unlabelled import open_unlabelled
from data.study import IMAGE, DatasetIndex, Pixels, Study
from evaluation.fitting import stored_point
from evaluation.operating_points import OperatingPoint
from hybridmednet.opened_model import OpenedModel, check_alike
from inference.ensemble import Ensemble, Member
from inference.members import chosen_thresholds
from inference.predictor import Predictor
from inference.results import Row
from models import HybridMedNet
from models.saved_model import load_models
from training.precision import choose_available_precision, choose_device, choose_memory_format
from utils.batch import Inputs, takes_inputs
from utils.checkpoint import find_weights, load_checkpoint
from utils.decision import Task
from utils.listener import FileContent
from utils.runs.cross_validation import model_files

Array: TypeAlias = NDArray[np.generic]
# An image [H, W] or [H, W, 3], as it is read or given → [C, H, W] for a user's own network.
OwnPreprocess: TypeAlias = Callable[[Array], Tensor]
T = TypeVar("T")
# What may be asked about: a path (an image, a folder, a table), pixels [H, W] or [H, W, 3], a volume.
Asking: TypeAlias = str | Path | Array | Volume


@dataclass(frozen=True)
class Prediction:
    """What a model says of an image, or of a study of that name.

    probabilities: by class, calibrated where the file has a calibration; None with an error. called: the classes that
    are called at the operating point. warnings: in which ways it is unlike the training images. images, missing: of a
    study, see inference.results.Row.
    """

    name: str
    probabilities: Mapping[str, float] | None
    called: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    error: str = ""
    images: tuple[str, ...] | None = None
    missing: tuple[str, ...] = ()

    @classmethod
    def of(cls, row: Row, classes: Sequence[str]) -> Prediction:
        known = None if row.probabilities is None else dict(zip(classes, map(float, row.probabilities), strict=True))
        called = tuple(classes[k] for k in row.findings)
        return cls(row.image, known, called, row.warnings, row.error, row.images, row.missing)


class Pretrained(nn.Module):
    """A trained network in evaluation mode, with what belongs to it; or several, whose probabilities are averaged.

    network: it itself; calling this module calls it: inputs that are prepared already → logits. classes: their names,
    in the order of the logits. preprocess: how an image becomes its input; None of a network that was trained from a
    user's own loader, unless `from_pretrained` was given one. operating_point: calibration and thresholds that its file
    has. config: what it was made with. Of several, these are the first one's. decision: what is called, of all.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        config: Config,
        operating_point: OperatingPoint,
        asked: Sequence[AskedModel],
        own_preprocess: OwnPreprocess | None = None,
        settings: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self._ensemble, self._asked, self._settings = ensemble, tuple(asked), tuple(settings)
        self.networks = nn.ModuleList(member.model for member in ensemble.members)
        self.decision = ensemble.decision
        self.classes, self.config, self.file = ensemble.class_names, config, ensemble.members[0].name
        self.preprocess: AnyPreprocess | OwnPreprocess | None = own_preprocess if not asked else asked[0].preprocess
        self.operating_point, self._own_preprocess = operating_point, own_preprocess
        self.takes_inputs = takes_inputs(self.network)  # see utils.batch.call_model
        self.eval()

    @property
    def network(self) -> nn.Module:
        """The network, of several the first."""
        return self._ensemble.members[0].model

    def forward(self, x: Tensor | Inputs) -> object:
        """Prepared inputs → logits, as the network gives them. Raises PredictionError where there are several."""
        if len(self.networks) > 1:
            raise PredictionError(f"{len(self.networks)} networks have no logits in common: see predict")
        return self.network(x)

    def predict(
        self,
        asked: Asking | Sequence[Asking],
        table: str | Path | None = None,
        batch_size: int = 16,
        num_workers: int = 0,
    ) -> list[Prediction]:
        """What predict.py says of the same images: one Prediction an image, or a study, in their order.

        asked: a path (image, DICOM file, NIfTI volume, folder, table with a column `image`), or an array, or several of
        one kind. Arrays are images as a reader gives them: [H, W] or [H, W, 3], uint8, uint16, or floats in [0, 1].
        table: a clinical table, for models of studies.
        What cannot be read has an error in its Prediction. Raises HybridMedNetError in one line for what is none of
        these, and where there is nothing to be asked about.
        """
        if next(self.network.parameters()).device != self._ensemble.members[0].predictor.device:
            raise PredictionError("the network was moved: give from_pretrained the device it is to be on")
        items = list(asked) if isinstance(asked, (list, tuple)) else [asked]
        paths = [str(one) for one in items if isinstance(one, (str, Path))]
        if not items or len(paths) not in (0, len(items)):
            raise PredictionError(f"{len(paths)} paths among {len(items)} inputs: give paths, or arrays, at least one")
        if batch_size < 1 or num_workers < 0:
            raise PredictionError(f"batch_size {batch_size} must be at least 1, num_workers {num_workers} at least 0")
        self.eval()
        of_studies = bool(self._asked) and self._asked[0].of_studies
        if of_studies:
            rows = self._of_studies(paths, table, batch_size, num_workers)
        elif table is not None:
            raise PredictionError(f"table: '{self.file}' takes single images, this is for models of studies")
        elif not self._asked:
            rows = self._by_own_preprocess(paths or [self._pixels(one) for one in items], batch_size)
        elif paths:
            rows = self._of_files(paths, batch_size, num_workers)
        else:
            rows = self._of_pixels([self._pixels(one) for one in items], batch_size)
        return [Prediction.of(row, self.classes) for row in rows]

    def _pixels(self, item: object) -> Pixels:
        """A DataError for what no reader would give."""
        if isinstance(item, Volume):
            return item
        if isinstance(item, Tensor):
            raise DataError("a tensor is an input that is prepared already: call the model itself, model(tensor)")
        if type(item).__module__.startswith("PIL."):
            item = np.asarray(item)
        if not isinstance(item, np.ndarray):
            raise DataError(f"{type(item).__name__} is no image: give a path, an array [H, W] or [H, W, 3], or a list")
        if self.config.has_volumes():
            raise DataError("this model takes volumes, whose spacing an array does not say: give a path, or a Volume")
        if item.ndim not in (2, 3) or (item.ndim == 3 and item.shape[2] not in (1, 3)) or 0 in item.shape:
            raise DataError(f"an image is [H, W] or [H, W, 3], this is {item.shape}")
        if item.dtype.kind == "f":
            item = item.astype(np.float32)
            if not (np.isfinite(item).all() and item.min() >= 0 and item.max() <= 1):
                raise DataError(f"an image of floats is in [0, 1], this one is from {item.min():g} to {item.max():g}")
        elif item.dtype not in (np.uint8, np.uint16):
            raise DataError(f"an image is uint8, uint16, or floats in [0, 1], this is {item.dtype}")
        return item

    def _of_files(self, paths: Sequence[str], batch_size: int, num_workers: int) -> list[Row]:
        asked = AskedImages(self._asked, paths, self._settings)
        rows = [Row(item.name, item.columns) for item in asked.items]
        for _, numbers, read in asked.loader(batch_size, num_workers, False, range(len(rows))).epoch(0):
            if read is not None:
                self._fill(rows, numbers.tolist(), read.inputs, read.traits, asked.warnings)
        for number, row in enumerate(rows):
            if row.probabilities is None and not row.error:
                row.error = asked.failure(number)
        return rows

    def _of_pixels(self, pixels: Sequence[Pixels], batch_size: int) -> list[Row]:
        index, unread = _in_memory(pixels), UnreadableInputs()
        rows = [Row(study.name) for study in index.studies]

        def warnings(number: int, traits: Traits) -> list[str]:
            remarks = [f"{remark.kind}: {remark.detail}" for remark in unread.remarks.of(number)]
            profiles = (model.profile for model in self._asked if model.profile is not None)
            return list(dict.fromkeys([*remarks, *(text for one in profiles for text in one.differences(traits))]))

        joint = JointPreprocess(different([model.preprocess for model in self._asked]))
        loader = unlabelled_loader(index, joint, unread, batch_size, 0)
        for _, numbers, read in loader.epoch(0):
            if read is not None:
                self._fill(rows, numbers.tolist(), read.inputs, read.traits, warnings)
        for number, reason in unread.reasons.items():
            rows[number].error = reason
        return rows

    def _of_studies(
        self, paths: Sequence[str], table: str | Path | None, batch_size: int, num_workers: int
    ) -> list[Row]:
        if not paths:
            raise PredictionError("this model takes studies: give paths or tables of them, not arrays")
        asked = Asked(self._asked, paths, None if table is None else str(table), False, self._settings)
        studies = asked.dataset_index.studies
        rows = [Row(one.name, asked.columns[n], images=asked.names(n)) for n, one in enumerate(studies)]
        for _, numbers, read in asked.loader(batch_size, num_workers, False).epoch(0):
            if read is not None:
                self._fill(rows, numbers.tolist(), read.inputs, read.traits, asked.warnings)
        for number, row in enumerate(rows):
            row.missing = asked.missing(number)
            if row.probabilities is None and not row.error:
                row.error = asked.failure(number)
        return rows

    def _by_own_preprocess(self, items: Sequence[str] | Sequence[Pixels], batch_size: int) -> list[Row]:
        if self._own_preprocess is None:
            raise PredictionError(
                f"'{self.file}' was trained from a loader of one's own, which alone knows how an image is prepared: "
                "give from_pretrained(…, preprocess=), which makes a tensor [C, H, W] of an array [H, W] or [H, W, 3], "
                "or call model(tensor)"
            )
        paths = [one for one in items if isinstance(one, str)]
        index = open_unlabelled(paths, False)[0] if paths else _in_memory([p for p in items if not isinstance(p, str)])
        rows = [Row(study.name) for study in index.studies]
        for first in range(0, len(rows), batch_size):
            numbers, images = [], []
            for number in range(first, min(first + batch_size, len(rows))):
                try:
                    images.append(self._prepared(index, number))
                    numbers.append(number)
                except DataError as error:
                    rows[number].error = str(error)
            if images:
                inputs = (Inputs.of_images(torch.stack(images)),)
                self._fill(rows, numbers, inputs, [None] * len(numbers), lambda number, traits: [])
        return rows

    def _prepared(self, index: DatasetIndex, number: int) -> Tensor:
        assert self._own_preprocess is not None
        image = self._own_preprocess(np.asarray(index.read(number)))
        if not isinstance(image, Tensor) or image.ndim != 3 or not image.is_floating_point():
            shape = tuple(image.shape) if isinstance(image, Tensor) else ""
            raise PredictionError(
                f"preprocess gave {type(image).__name__} {shape}: it must give floats [C, H, W], a Tensor"
            )
        return image

    def _fill(
        self,
        rows: Sequence[Row],
        numbers: Sequence[int],
        inputs: Sequence[Inputs],
        traits: Sequence[T],
        warnings: Callable[[int, T], Sequence[str]],
    ) -> None:
        probabilities = self._ensemble.probabilities(inputs)
        for position, number in enumerate(numbers):
            rows[number].fill(probabilities[position], warnings(number, traits[position]), self._ensemble)


def _in_memory(pixels: Sequence[Pixels]) -> DatasetIndex:
    """A dataset index of arrays."""
    names = [f"array {number}" for number in range(len(pixels))]
    studies = tuple(Study(name, {IMAGE: name}, np.empty(0, np.float32)) for name in names)
    return DatasetIndex((), studies, pixels.__getitem__)


def from_pretrained(
    path: str | Path | Sequence[str | Path],
    model: nn.Module | None = None,
    preprocess: OwnPreprocess | None = None,
    *,
    device: str = "auto",
    threshold: float | None = None,
    tta: bool = False,
    settings: Sequence[str] = (),
) -> Pretrained:
    """The network of a run's folder (its best weights), or of a file of this program or the previous release.

    path: several, or a cross-validation's folder: all of them, whose probabilities are averaged.
    model, preprocess: of a run that a Trainer made of a network or a loader of one's own: the network, which gets the
    file's weights, and what makes its input of an image. device, threshold, tta, settings ('SECTION.key=value'): as of
    predict.py.
    Raises HybridMedNetError in one line. Nothing in a file names code that is run.
    """
    paths = [Path(path)] if isinstance(path, (str, Path)) else [Path(one) for one in path]
    files = [file for one in paths for file in model_files(one)]
    if not files:
        raise PredictionError("from_pretrained needs a run's folder or a model's file")
    if model is None and preprocess is None:
        try:
            return _of_this_program(files, device, threshold, tta, settings)
        except OwnLoaderError:
            if len(files) > 1:
                raise
    if len(files) > 1:
        raise PredictionError(f"model and preprocess are of one file, not of {len(files)}")
    return _of_own_training(files[0], model, preprocess, device, threshold, tta)


def _of_this_program(
    files: Sequence[Path], device: str, threshold: float | None, tta: bool, settings: Sequence[str]
) -> Pretrained:
    opened = [OpenedModel.of(file, saved) for file, saved in zip(files, load_models(files, settings, PREDICT))]
    asked = [one.asked for one in opened]
    check_alike(asked)
    place = choose_device(device)
    members = [one.member(number, place, tta) for one, number in zip(opened, input_numbers(asked))]
    return Pretrained(Ensemble(members, threshold), asked[0].config, opened[0].point, asked, settings=settings)


def _of_own_training(
    file: Path,
    model: nn.Module | None,
    preprocess: OwnPreprocess | None,
    device: str,
    threshold: float | None,
    tta: bool,
) -> Pretrained:
    content = load_checkpoint(file)
    if not content.get("own_loader"):
        raise PredictionError(f"'{file}' says itself what it is of: leave out model and preprocess")
    names = content.get("class_names") or []
    config = Config.from_values(content.get("config"), (), f"the settings in '{file}'").without_pretrained()
    network = _own_network(file, content, model, config)
    task = Task(tuple(names), config.MODEL.task == "multi_class", config.DATA.positive_class)
    point = stored_point(content.get("operating_point"), len(names))
    place = choose_device(device)
    precision = choose_available_precision(config.TRAIN.mixed_precision, place)
    layout = choose_memory_format(config.TRAIN.channels_last)
    predictor = Predictor([network.to(place).to(memory_format=layout)], precision, layout, tta)
    member = Member(
        str(file),
        task,
        predictor,
        lambda logits: point.probabilities(logits, task.exclusive),
        *chosen_thresholds(point, task),
    )
    return Pretrained(Ensemble([member], threshold), config, point, (), preprocess)


def _own_network(file: Path, content: FileContent, model: nn.Module | None, config: Config) -> nn.Module:
    """With the file's weights. Raises PredictionError where they are not of it."""
    name = content.get("own_model")
    if model is None and name is not None:
        raise PredictionError(
            f"'{file}' has the weights of a network of one's own, {name}: give it, from_pretrained(…, model={name}(…))"
        )
    network = HybridMedNet(config.complete()) if model is None else model
    weights = find_weights(content["ema"]["shadow"] if content.get("ema") else content.get("model"))
    try:
        network.load_state_dict(weights or {})
    except (RuntimeError, TypeError) as error:
        text = " ".join(str(error).split())[:400]
        raise PredictionError(f"'{file}' has the weights of another network ({name}): {text}") from None
    return network
