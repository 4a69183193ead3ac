"""Going on with an interrupted run."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from configs.best_by import MEAN_AUROC
from configs.default_config import Config
from configs.differences import differences
from configs.errors import CheckpointError
from configs.fallbacks import coarse_meanings
from training.learner import Learner
from training.state import TrainerState
from utils.best_metric import best_row, score_of, setting_of, title_of
from utils.listener import FileContent

logger = logging.getLogger("train")


def resume(learner: Learner, checkpoint: FileContent, config: Config, images: int) -> None:
    """Put a learner where the checkpoint was taken, and say which settings differ from those it was taken with.

    images: of the training split. Where steps are larger or smaller than they were, the learning rate and the average's
    warm-up go on at the share of the training that is done.
    Raises CheckpointError, the learner unchanged, where the checkpoint is of other classes, model or optimizer.
    """
    before = checkpoint.get("config")
    classes = checkpoint.get("class_names")
    if not isinstance(classes, list) or list(map(repr, classes)) != list(map(repr, config.DATA.class_names or [])):
        names = ", ".join(map(str, classes)) if isinstance(classes, list) and classes else "?"
        raise CheckpointError(
            f"the run to resume has the classes {names}, the data now have "
            f"{', '.join(config.DATA.class_names or ['?'])}: start a new run, from its weights by MODEL.init_from"
        )
    if not isinstance(before, Mapping):
        raise CheckpointError("the settings in this checkpoint are damaged")
    _check_coarse_classes(before, config)
    messages = _differences(before, config)
    earlier = _earlier_epoch(before, checkpoint.get("training_data"), config, images)
    learner.load_state_dict(checkpoint)
    for level, words in messages:
        logger.log(level, "different from the run's start: %s", words)
    now = _Epoch(images, config.TRAIN.batch_size, config.TRAIN.gradient_accumulation_steps)
    if earlier != now:
        _move_batches(learner.state, earlier, now)
        _move_schedule(learner, now)
    if learner.state.epoch > config.TRAIN.epochs:
        done = learner.state.epoch
        logger.warning("%d epochs are done, and TRAIN.epochs is %d: nothing is trained", done, config.TRAIN.epochs)


def judge_again(learner: Learner, history: Sequence[FileContent], before: object, config: Config) -> bool:
    """Where the figure changed that decides about the best epoch, score the past epochs by the new one, and say so.

    before: the settings in the checkpoint, of any type. history: rows of metrics.jsonl. True where another epoch is the
    best now, so that best_model.pth is of another one. Early stopping and plateau count on in the new figure.
    """
    was, best_by = setting_of(before) or MEAN_AUROC, config.CHECKPOINT.best_by
    if best_by is None or was == best_by:
        return False
    state, schedule = learner.state, learner.schedule
    best, epoch_before = best_row(history, best_by), state.best_epoch
    state.best_epoch = -1 if best is None else best["epoch"] - 1
    state.best_score = -math.inf if best is None else score_of(best, best_by)
    schedule.judge_again([score_of(row, best_by) for row in history])
    epoch = "none so far" if best is None else f"epoch {state.best_epoch + 1}"
    words = title_of(was), title_of(best_by), epoch
    logger.warning("the best epoch was chosen by %s and is by %s from now on: %s", *words)
    return state.best_epoch != epoch_before


def _check_coarse_classes(before: FileContent, config: Config) -> None:
    """CheckpointError where the coarse outputs of a hierarchical model would be trained on other targets."""
    settings, names = before.get("MODEL"), config.DATA.class_names or []
    groups = settings.get("coarse_groups") if isinstance(settings, Mapping) else None
    if not config.MODEL.hierarchical:
        return
    try:
        was = coarse_meanings(groups, names)
        same = was == coarse_meanings(config.MODEL.coarse_groups, names)
        words = [_coarse_words(one) for one in (groups, config.MODEL.coarse_groups)]
    except (AttributeError, TypeError, ValueError):
        raise CheckpointError("the settings in this checkpoint are damaged: MODEL.coarse_groups") from None
    if not same:
        raise CheckpointError(
            f"the run to resume has the coarse classes {words[0]}, MODEL.coarse_groups now says {words[1]}: their "
            "order counts, set it as it was; or start a new run by MODEL.init_from, which goes by names"
        )


def _coarse_words(groups: Mapping[str, Sequence[str]] | None) -> str:
    if not groups:
        return "any finding, no finding"
    return ", ".join(f"{name} ({', '.join(members)})" for name, members in groups.items())


@dataclass(frozen=True)
class _Epoch:
    """What an epoch is made of: training images, in batches, of which so many make an optimizer step."""

    images: int
    batch_size: int
    accumulation_steps: int

    @property
    def batches(self) -> int:
        return -(-self.images // self.batch_size)

    def steps_from(self, batch: int) -> int:
        """Optimizer steps from a batch to the end of the epoch."""
        return -(-(self.batches - batch) // self.accumulation_steps)


def _differences(before: FileContent, config: Config) -> list[tuple[int, str]]:
    """Log lines about settings that differ. CheckpointError where those of the checkpoint are none."""
    try:
        found = differences(before, config.model_dump(mode="json"))
        mattering = "; ".join(str(difference) for difference in found if difference.matters)
        others = "; ".join(str(difference) for difference in found if not difference.matters)
    except (AttributeError, TypeError, ValueError, RuntimeError):  # no mappings, or values that do not compare
        raise CheckpointError("the settings in this checkpoint are damaged") from None
    lines = [(logging.WARNING, f"the weights will differ: {mattering}")] if mattering else []
    return [*lines, (logging.INFO, f"without effect on the weights: {others}")] if others else lines


def _earlier_epoch(before: FileContent, training_data: object, config: Config, images: int) -> _Epoch:
    """What an epoch was made of when the checkpoint was taken; what it does not say is as now.

    before, training_data: its settings, and what it says of the training images, of any type.
    """
    counted = training_data.get("of") if isinstance(training_data, Mapping) else None
    section = before.get("TRAIN", {})
    values = []
    for key in ("batch_size", "gradient_accumulation_steps"):
        value = section.get(key, config.TRAIN[key]) if isinstance(section, Mapping) else None
        if type(value) is not int or not 0 < value < 1 << 31:
            raise CheckpointError(f"the settings in this checkpoint are damaged: TRAIN.{key}")
        values.append(value)
    known = isinstance(counted, int) and 0 < counted < 1 << 53
    return _Epoch(counted if known and counted is not None else images, *values)


def _move_batches(state: TrainerState, before: _Epoch, now: _Epoch) -> None:
    """Continue the epoch at the same image, or a few before it; of another number of images at the same share."""
    sums = state.sums
    if (before.images, before.batch_size) == (now.images, now.batch_size) or not sums.batches:
        return
    images = min(sums.batches * before.batch_size, before.images) * now.images // before.images
    sums.batches = now.batches if images == now.images else images // now.batch_size
    again = max(images - sums.batches * now.batch_size, 0)
    logger.warning("the epoch continues at image %d; %d images are seen twice in it", images - again, again)


def _move_schedule(learner: Learner, now: _Epoch) -> None:
    """Let the learning rate go on at the share of the training that is done, and the average's warm-up with it.

    The end of each epoch is where it is in a run of `now` from the start. AdamW's own count, which corrects the bias of
    averages that have seen so many gradients, stays.
    """
    schedule, state = learner.schedule, learner.state
    before = schedule.step_number
    step = (state.epoch + 1) * now.steps_from(0) - now.steps_from(state.sums.batches)
    if step == before:
        return
    schedule.move_to(step)
    if learner.ema is not None and before:
        learner.ema.updates = round(learner.ema.updates * step / before)
    text = "the learning rate goes on at %.1f %% of the training, step %d of %d in steps of this size"
    logger.warning(text, 100 * step / schedule.total_steps, step, schedule.total_steps)
