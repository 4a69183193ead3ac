"""What training changes and a checkpoint carries."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from training.ema import ExponentialMovingAverage
from training.freezing import Freezing
from training.layer_rates import describe_rates
from training.optim import LearningRateSchedule, earlier_group_names, regroup
from training.out_of_memory import Adaptation
from training.precision import Precision
from training.sparsity import SparseWeights
from training.state import EpochSums, TrainerState
from training.state_check import TrainingContent, check_resumable, saved_groups
from utils.listener import CheckpointContent, FileContent, StateDict
from utils.seed import random_state, set_random_state

logger = logging.getLogger("train")


class Learner:
    """A network in training with all that its next steps depend on, beside the data.

    model: on its device. precision: of forward passes; it says which loss scale is needed. adaptation: how far the
    steps were made smaller to fit into memory. ema, sparsity, freezing: where there is an average, where weights are
    pruned, where a part is not trained.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: LearningRateSchedule,
        precision: Precision,
        adaptation: Adaptation,
        ema: ExponentialMovingAverage | None = None,
        sparsity: SparseWeights | None = None,
        freezing: Freezing | None = None,
    ) -> None:
        self.freezing = freezing
        self.model, self.optimizer, self.schedule, self.precision = model, optimizer, schedule, precision
        self.adaptation, self.ema, self.sparsity = adaptation, ema, sparsity
        self.scaler = precision.scaler()
        self.device = next(model.parameters()).device
        self.state = TrainerState()

    def train_mode(self) -> None:
        """The model in training mode, but for what is frozen in this epoch."""
        self.model.train()
        if self.freezing is None:
            return
        if self.freezing.apply(self.state.epoch) and not self.freezing.is_frozen(self.state.epoch):
            logger.info("epoch %d: %s is trained from here on", self.state.epoch + 1, self.freezing.part.title)

    def describe_rates(self) -> list[str]:
        """How many parameters are trained in the next epoch at which peak rate, and how many are frozen."""
        if self.freezing is not None:
            self.freezing.apply(self.state.epoch)
        frozen = self.freezing is not None and self.freezing.is_frozen(self.state.epoch)
        rates = describe_rates(self.optimizer.param_groups, self.schedule.peak)
        return [*rates, str(self.freezing)] if frozen else rates

    @property
    def scored_weights(self) -> StateDict:
        """The weights that are evaluated and published: the moving average's where there is one."""
        weights: StateDict = self.model.state_dict() if self.ema is None else self.ema.shadow
        return weights

    def state_dict(self) -> TrainingContent:
        """Everything that makes the rest of the run the same as if it had not been interrupted."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "optimizer_kind": type(self.optimizer).__name__,
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": random_state(),
            "progress": {**vars(self.state), "sums": vars(self.state.sums).copy()},
        }

    def load_state_dict(self, content: CheckpointContent) -> None:
        """Go on where `state_dict` was taken, with this run's hyperparameters.

        Raises CheckpointError, before anything is changed, where that was another model, optimizer or version.
        """
        own = self.state_dict()
        optimized = {name for group in self.optimizer.param_groups for name in group["param_names"]}
        earlier = earlier_group_names(self.model, optimized)
        saved = check_resumable(content, own, dict(self.model.named_parameters()), earlier)
        progress = saved["progress"]
        state = TrainerState(**{**progress, "sums": EpochSums(**progress["sums"])})
        self.adaptation.resume(state)
        vars(self.state).update(vars(state))
        self.model.load_state_dict(saved["model"])
        if self.sparsity is not None:
            self.sparsity.take_from(self.model)
        if self.ema is not None:
            self.ema.restart(self.model)
            if saved["ema"] is not None:
                self.ema.load_state_dict(saved["ema"])
        self._load_optimizer(saved["optimizer"], saved_groups(saved["optimizer"], own["optimizer"], earlier))
        self.schedule.load_state_dict(saved["schedule"])
        if saved["scaler"]:  # else the saved run had no fp16, and this one finds its scale itself
            self.scaler.load_state_dict(dict(saved["scaler"]))
        set_random_state(saved["random"])

    def _load_optimizer(self, saved: FileContent, names: Sequence[Sequence[str]]) -> None:
        """Its state, found by the parameters' names; what decays is what did when the run began, which is told.

        Learning rates per group are this run's, however the groups were cut.
        """
        before, now = (
            {name for group in groups[::2] for name in group}
            for groups in (names, [group["param_names"] for group in self.optimizer.param_groups])
        )
        if others := [name for group in names for name in group if (name in before) is not (name in now)]:
            text = "the run began with another rule of weight decay, which stays: %d parameters (%s …)"
            logger.info(text, len(others), others[0])
        regroup(self.optimizer, names)
        numbered = enumerate(name for group in names for name in group)
        states = {name: saved["state"].get(number) for number, name in numbered}
        groups = self.optimizer.state_dict()["param_groups"]  # weight decay and the like are this run's config's
        ordered = [name for group in groups for name in group["param_names"]]
        state = {number: states[name] for number, name in enumerate(ordered) if states[name] is not None}
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
