"""What a run leaves behind while it trains: metrics, TensorBoard, checkpoints, curves."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol, TypedDict

import numpy as np

from configs.best_by import MEAN_AUROC, NAMES
from configs.default_config import Config
from configs.errors import DamagedCheckpointError
from configs.logging_settings import trackers_of
from utils.best_metric import figure_of, title_of
from utils.checkpoint import OPERATING_POINT, load_checkpoint, save_checkpoint, set_aside
from utils.listener import (
    CheckpointContent,
    EpochEnd,
    EpochRecord,
    FileContent,
    Listener,
    RegionRecord,
    Scores,
    StateDict,
)
from utils.metrics import Metrics, format_metrics_table
from utils.runs.files import BEST, LAST, PREVIOUS, epoch_file
from utils.runs.folder import RunFolder
from utils.runs.plots import plot_roc_curves, plot_training_curves
from utils.runs.save_errors import on_save_error
from utils.runs.scalars import ScalarWriter

logger = logging.getLogger(__name__)


class MeasuredRegions(Protocol):
    """Maps against annotated regions."""

    def as_dict(self) -> RegionRecord: ...


class Scored(Protocol):
    """Scores of a split: probabilities, targets and masks [N, K], the mean loss; regions: None where there are none."""

    scores: np.ndarray
    targets: np.ndarray
    mask: np.ndarray
    loss: float
    metrics: Metrics

    @property
    def regions(self) -> MeasuredRegions | None: ...


class Best(NamedTuple):
    """The weights that a report is about, None for those of the last step, and the epoch they are of.

    operating_point: what best_model.pth has of one.
    """

    weights: StateDict | None
    epoch: int
    operating_point: FileContent | None = None


_REGIONS = ("energy_inside", "pointing_game")  # of RegionRecord, those that TensorBoard shows


class LatestScalars(TypedDict):
    """What a checkpoint holds of TensorBoard's scalars: the figures last recorded, by tag, and of which step.

    step: None in a damaged file.
    """

    step: int | None
    figures: dict[str, float]


class Recorder(Listener):
    """A Listener of a training run (see utils/listener.py), and the writer of its report.

    What cannot be written (a full disk, a quota) is a CheckpointError, or a log line where
    CHECKPOINT.on_save_error is 'continue'; files that were there before stay whole.

    config: its CHECKPOINT and LOGGING sections are followed.
    description: what every checkpoint carries beside weights: config, class names, preprocessing; plain values.
    checkpoint: what a run is resumed from; TensorBoard forgets what was written after it.
    fit: an epoch's validation scores → the operating point of its weights, plain values; without it there is none.
    """

    def __init__(
        self,
        run: RunFolder,
        config: Config,
        description: CheckpointContent,
        checkpoint: FileContent | None = None,
        fit: Callable[[Scores], CheckpointContent] | None = None,
    ) -> None:
        self.fit = fit
        self.run, self.description = run, dict(description)
        self.save_freq, self.save_best = config.CHECKPOINT.save_freq, config.CHECKPOINT.save_best
        self.continues = config.CHECKPOINT.on_save_error == "continue"
        self.figure_format = config.LOGGING.figure_format
        self._latest = _latest_scalars(checkpoint)
        self.writer = None
        if "tensorboard" in trackers_of(config.LOGGING):
            self.writer = ScalarWriter(Path(config.LOGGING.log_dir) / run.path.name, *self._still_true(checkpoint))

    def on_step(self, step: int, figures: Mapping[str, float]) -> None:
        """Scalars of an optimizer step."""
        self._latest = {"step": step, "figures": {tag: float(value) for tag, value in figures.items()}}
        self._write_scalars(step, figures)

    def on_epoch(self, end: EpochEnd) -> None:
        """Write the record, the checkpoints and the curves of an epoch; last.pth after what it says is there."""
        record, by = end.record, end.best_by or MEAN_AUROC
        with self._writing("metrics"):
            self.run.add_record(record)
        self._write_scalars(record["step"], _epoch_scalars(self.run.history[-1]))
        point = self._operating_point(end.validation)
        if end.is_best and self.save_best:
            best = {**self.description, "model": end.best_weights, "metrics": self.run.history[-1], **point}
            with self._writing(BEST):
                save_checkpoint(best, self.run.path / BEST)
        if self.save_freq and record["epoch"] % self.save_freq == 0:
            name = epoch_file(record["epoch"])
            with self._writing(name):
                save_checkpoint(self._whole({**end.content, **point}), self.run.path / name)
        self.save({**end.content, **point})
        with self._writing("training curves"):
            plot_training_curves(self.run.history, self._figure("training_curves"), by)
        logger.info("%s", _summary(record, end.is_best, by))

    def _operating_point(self, validation: Scores | None) -> CheckpointContent:
        """Of the weights at the end of an epoch; within an epoch a checkpoint has none."""
        return {} if self.fit is None or validation is None else {OPERATING_POINT: self.fit(validation)}

    def save(self, content: CheckpointContent) -> None:
        """Write last.pth; the one before stays as previous.pth."""
        with self._writing(LAST):
            save_checkpoint(self._whole(content), self.run.path / LAST, self.run.path / PREVIOUS)

    def _figure(self, name: str) -> Path:
        return self.run.path / f"{name}.{self.figure_format}"

    def _writing(self, what: str) -> AbstractContextManager[None]:
        return on_save_error(self.continues, what)

    def report(self, split: str, epoch: int, predictions: Scored) -> None:
        """The results of an epoch's weights on a split: a table, a record, ROC curves."""
        metrics = predictions.metrics
        path = self._figure("roc_curves")
        title = f"ROC curves on {split}, epoch {epoch}"
        with self._writing("results"):
            plot_roc_curves(predictions.scores, predictions.targets > 0.5, predictions.mask, metrics, path, title)
            regions = {} if predictions.regions is None else {"attention": predictions.regions.as_dict()}
            self.run.add_record({"split": split, "loss": predictions.loss, **metrics.as_dict(), **regions})
        logger.info("%s, weights of epoch %d:\n%s", split, epoch, format_metrics_table(metrics))
        logger.info("results are in %s", self.run.path)
        if self.writer is not None:
            self.writer.close()

    def best(self, last_epoch: int) -> Best:
        """What best_model.pth holds; the last weights where it is not kept, or damaged, which is logged."""
        best = self.run.path / BEST
        try:
            content = load_checkpoint(best) if best.is_file() else None
        except DamagedCheckpointError as error:
            logger.error("%s, kept as '%s': the report is about the last weights", error, set_aside(best).name)
            content = None
        if content is None:
            return Best(None, last_epoch)
        return Best(content["model"], content["metrics"]["epoch"], content.get(OPERATING_POINT))

    def _whole(self, content: CheckpointContent) -> CheckpointContent:
        """A checkpoint's content with the run's description and the last figures written to TensorBoard."""
        return {**self.description, **content, "scalars": self._latest}

    def _write_scalars(self, step: int, figures: Mapping[str, float]) -> None:
        if self.writer is not None:
            with self._writing("TensorBoard's file"):
                self.writer.add(step, figures)

    def _still_true(self, checkpoint: FileContent | None) -> tuple[int, list[tuple[int, dict[str, float]]]]:
        """(from which step on earlier figures are forgotten, those of this step that stand all the same).

        An epoch that ended with the checkpoint's step may have been written before the process was killed or not, and
        belongs to what is done again or not: so the step is purged as a whole and written again from the checkpoint.
        """
        if checkpoint is None:
            return 0, []
        step = checkpoint["progress"]["global_step"]
        if "scalars" not in checkpoint:  # written by a version that did not keep them
            return step + 1, []
        current = [(step, self._latest["figures"])] if self._latest["step"] == step else []
        return step, current + [(step, _epoch_scalars(row)) for row in self.run.history if row.get("step") == step]


def _latest_scalars(checkpoint: FileContent | None) -> LatestScalars:
    """The figures last recorded of a step before the checkpoint; none where it has none, or no figures."""
    latest = (checkpoint or {}).get("scalars")
    if isinstance(latest, Mapping) and isinstance(latest.get("figures"), Mapping):
        figures = {str(tag): value for tag, value in latest["figures"].items() if isinstance(value, float)}
        return {"step": latest.get("step"), "figures": figures}
    return {"step": 0, "figures": {}}


def _epoch_scalars(row: FileContent) -> dict[str, float]:
    """An epoch's TensorBoard scalars: the defined values of its row of metrics.jsonl."""
    names = ("train_loss", "val_loss", "mean_auroc", "mean_average_precision", "learning_rate", "skipped_steps")
    figures = {f"epoch/{name}": row.get(name) for name in names}
    figures |= {f"auroc/{each['name']}": each["auroc"] for each in row.get("per_class", ())}
    figures |= {f"attention/{name}": row["attention"].get(name) for name in _REGIONS if row.get("attention")}
    return {tag: value for tag, value in figures.items() if value is not None}


def _summary(record: EpochRecord, is_best: bool, best_by: str) -> str:
    def show(value: float | None) -> str:
        return "–" if value is None or math.isnan(value) else f"{value:.4f}"

    parts = [
        f"epoch {record['epoch']}: loss {show(record['train_loss'])}, validation {show(record['val_loss'])}",
        f"AUROC {show(record['mean_auroc'])} over {record['defined_classes']} of {len(record['per_class'])} classes",
        f"AP {show(record['mean_average_precision'])}",
        f"{record['images_per_second']:.0f} images/s ({record['data_wait_fraction']:.0%} of it waiting for data), "
        f"{record['seconds']:.1f} s",
    ]
    if best_by not in NAMES:
        parts.insert(2, f"{title_of(best_by)} {show(figure_of(record, best_by))}")
    if "attention" in record:
        regions = record["attention"]
        parts.append(
            f"energy of maps inside regions {show(regions['energy_inside'])} (of {regions['regions']}, an even map "
            f"{show(regions['area'])}), pointing game {show(regions['pointing_game'])}"
        )
    if record["skipped_steps"]:
        parts.append(f"{record['skipped_steps']} steps skipped")
    by = "" if best_by == MEAN_AUROC else f" by {title_of(best_by)}"
    return ", ".join(parts) + (f"  (best{by})" if is_best else "")
