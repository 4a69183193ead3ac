"""A training of a user's own network and loaders: what train.py would build, where it is not given."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from configs.default_config import Config
from configs.differences import differences
from configs.errors import ConfigError, DataError, HybridMedNetError, ModelError, TrainingError
from training.builder import build_learner, build_loss, resolve_precision
from training.criterion import Criterion, CriterionLoss
from training.learner import Learner
from training.losses import Loss
from training.precision import choose_device
from training.resume import resume
from training.user_batches import Given, LabelForm, form_of, of_shape
from training.user_loader import Batches, UserLoader, check_loader, first_batch, length
from training.user_optimizer import adopt_optimizer
from utils.batch import Batch, Inputs, Logits, call_model
from utils.checkpoint import load_resumable
from utils.decision import Task
from utils.environment import describe_environment
from utils.evaluation_mode import evaluating
from utils.gradient_checkpointing import Checkpointable
from utils.listener import CheckpointContent, FileContent, Scores
from utils.out_of_memory import is_out_of_memory
from utils.process import prepare_process
from utils.runs.folder import RunFolder
from utils.seed import seeded

logger = logging.getLogger("train")

# What of a Config has an effect on a training of a network and loaders that are given.
_FOLLOWED: tuple[str, ...] = (
    *("TRAIN", "LOSS", "CHECKPOINT", "LOGGING"),
    *("MODEL.name", "MODEL.task", "DATA.class_names", "DATA.class_titles", "DATA.positive_class"),
)


@dataclass(frozen=True)
class OwnLoaders:
    """See training.run.Splits."""

    train: UserLoader
    val: UserLoader
    test: UserLoader | None


@dataclass(frozen=True)
class OwnParts:
    """See training.run.Prepared. form: of the labels. exclusive: exactly one class is present."""

    config: Config
    checkpoint: FileContent | None
    loaders: OwnLoaders
    learner: Learner
    loss: Loss
    form: LabelForm
    not_learnt: Sequence[str] = ()

    @property
    def architecture(self) -> str:
        """For the name of the run's folder."""
        return type(self.learner.model).__name__

    @cached_property
    def task(self) -> Task:
        """What the classes are to each other."""
        names = self.config.DATA.class_names or ()
        return Task(tuple(names), self.loss.exclusive, self.config.DATA.positive_class)

    @property
    def operating_point(self) -> Callable[[Scores], CheckpointContent] | None:
        """None where labels name no classes."""
        return None if self.form.kind == "other" else self._point

    def _point(self, validation: Scores) -> CheckpointContent:
        from evaluation.fitting import point_of_training

        return dict(point_of_training(validation, self.task).as_dict())

    def report_operating_point(self, stored: FileContent | None) -> None:
        """Say what leaves the training with its best weights."""
        from evaluation.fitting import training_text

        if (text := training_text(stored, self.task)) is not None:
            logger.info("with the best weights are saved: %s", text)

    def describe(self, run: RunFolder) -> CheckpointContent:
        """Write config and environment into the run's folder; what checkpoints carry of them."""
        config, learner = self.config, self.learner
        run.write_text(run.config.name, config.to_yaml())
        run.write_json("environment.json", describe_environment(str(learner.device), learner.precision.name))
        parameters = sum(parameter.numel() for parameter in learner.model.parameters())
        text = "run %s: %s on %s, %s with %.2f M parameters"
        logger.info(text, run.path, learner.precision.name, learner.device, self.architecture, parameters / 1e6)
        names = list(config.DATA.class_names or ())
        return {
            "config": config.model_dump(mode="json"),
            "class_names": names,
            "own_model": None if is_described(learner.model, config) else self.architecture,
            "own_loader": True,
        }


def is_described(model: nn.Module, config: Config) -> bool:
    """Whether a network can be built again from the config alone, as `from_pretrained` does."""
    from models import HybridMedNet
    from models.state_dicts import compare, todays_names

    if not isinstance(model, HybridMedNet):
        return False
    outline = config.without_pretrained().complete()
    outline.MODEL.gradient_checkpointing.enabled = False  # plans by what is computed
    try:
        with torch.device("meta"):
            compare(HybridMedNet(outline).state_dict(), todays_names(dict(model.state_dict())))
    except ModelError as error:
        raise ConfigError(
            f"the config is not the one that this network was built with ({error}): give Trainer that one"
        ) from None
    return True


class OwnTraining:
    """What a Trainer was given, checked as far as it can be at once. See there for the arguments."""

    def __init__(
        self,
        model: nn.Module,
        loaders: Mapping[str, Batches | None],
        optimizer: torch.optim.Optimizer | None,
        criterion: Criterion | None,
        class_names: Sequence[str] | None,
        config: Config | None,
    ) -> None:
        self.model, self.optimizer, self.criterion = model, optimizer, criterion
        self.class_names = None if class_names is None else list(class_names)
        self.config = Config() if config is None else config.model_copy(deep=True)
        self.loaders = {name: loader for name, loader in loaders.items() if loader is not None}
        _check_model(model)
        for name, loader in self.loaders.items():
            check_loader(loader, name)
        if criterion is not None:
            _check_criterion(criterion)
        self._check_config()

    def prepare(self, resumed: Path | None, epochs: int | None, folder: Path | None) -> OwnParts:
        """The first half of train.py's recipe. epochs, folder: in place of the config's, where they are not None."""
        config = self.config.model_copy(deep=True)
        if epochs is not None:
            config.TRAIN.epochs = epochs
        if folder is not None:
            config.CHECKPOINT.save_dir, config.LOGGING.run_name = str(folder.parent), folder.name
        device = choose_device(config.TRAIN.device)
        prepare_process(device, config.TRAIN.seed)
        checkpoint = load_resumable(resumed) if resumed else None
        self.model.to(device)
        if isinstance(self.criterion, nn.Module):
            self.criterion.to(device)
        look = self._look(config, device)
        config = self._resolved(config, look)
        if self.optimizer is not None:
            config.TRAIN.learning_rate = adopt_optimizer(self.optimizer, self.model)
            logger.info("learning rates are the optimizer's, times the schedule '%s'", config.TRAIN.lr_scheduler)
        config = _settle_precision(config, self.model, look.image, checkpoint)
        loss = self._loss(config, look)
        batches = length(self.loaders["train_loader"], "train_loader")
        learner = build_learner(config, self.model, batches, optimizer=self.optimizer)
        if checkpoint is not None:
            resume(learner, checkpoint, config, batches * config.TRAIN.batch_size)
        splits = [self._loader(name, look.form, config.TRAIN.seed) for name in ("train", "val", "test")]
        train, val, test = splits
        assert train is not None and val is not None
        return OwnParts(config, checkpoint, OwnLoaders(train, val, test), learner, loss, look.form)

    def _loader(self, split: str, form: LabelForm, seed: int) -> UserLoader | None:
        loader = self.loaders.get(f"{split}_loader")
        return None if loader is None else UserLoader(loader, f"{split}_loader", form, seed)

    def _look(self, config: Config, device: torch.device) -> _Look:
        """At the first batch of each loader, and what the model and the criterion make of that of training."""
        firsts = {name: first_batch(loader, name, config.TRAIN.seed) for name, loader in self.loaders.items()}
        first = _given(firsts["train_loader"])
        logits = _asked(self.model, first.inputs.to(device))
        if logits.coarse is not None and self.criterion is None:
            raise TrainingError(
                "a hierarchical network needs labels of coarse classes, which loaders of one's own do not give: train "
                "it by train.py, or give a criterion, which gets the logits of the findings"
            )
        classes = logits.fine.shape[1]
        try:
            form = form_of(first, classes, "batch 0 of train_loader")
        except DataError as reason:
            if self.criterion is None:
                raise
            logger.warning("validation gives the loss alone, no AUROC: %s", reason)
            form = LabelForm("other", classes)
        for name, other in firsts.items():
            if not isinstance(other, Batch):
                form.targets(other, f"batch 0 of {name}")
        return _Look(first.inputs.image, first.inputs.studies, logits.fine.float(), first.label, form)

    def _resolved(self, config: Config, look: _Look) -> Config:
        """With what the loaders decide: classes, their number, the size of images and batches."""
        classes, exclusive = look.form.classes, self._exclusive(config, look.form)
        names = self.class_names or config.DATA.class_names or self._classes_of_dataset(classes)
        if len(names) != classes:
            raise ConfigError(f"the model gives {classes} logits, class_names names {len(names)} classes")
        config.TRAIN.batch_size = look.batch
        if look.image.ndim == 4 and look.image.shape[1] in (1, 3):
            config.DATA.image_size = (look.image.shape[2], look.image.shape[3])
            config.MODEL.in_channels = 1 if look.image.shape[1] == 1 else 3
        return config.resolve(list(names), exclusive)

    def _exclusive(self, config: Config, form: LabelForm) -> bool:
        softmax = isinstance(self.criterion, (nn.CrossEntropyLoss, nn.NLLLoss))
        return form.kind == "numbers" or config.MODEL.task == "multi_class" or (softmax and form.classes > 1)

    def _classes_of_dataset(self, classes: int) -> list[str]:
        """torchvision's datasets name theirs; else they are numbered."""
        named = getattr(getattr(self.loaders["train_loader"], "dataset", None), "classes", None)
        if isinstance(named, (list, tuple)) and len(named) == classes and all(isinstance(one, str) for one in named):
            return list(named)
        return [f"class {number}" for number in range(classes)]

    def _loss(self, config: Config, look: _Look) -> Loss:
        if self.criterion is not None:
            loss = CriterionLoss(self.criterion, config.MODEL.task == "multi_class")
            loss.value(look.logits, look.label.to(look.logits.device))  # an error now, not after an epoch
            return loss
        return build_loss(config, _NoLabels(), (), look.logits.device)

    def _check_config(self) -> None:
        config = self.config
        config.check()
        if config.LOSS.teacher is not None or config.LOSS.attention.trains:
            key = "LOSS.teacher" if config.LOSS.teacher is not None else "LOSS.attention"
            raise ConfigError(f"{key} needs data that this program reads itself: train by train.py")
        if self.criterion is None and "auto" in (config.LOSS.pos_weight, config.LOSS.class_weight):
            raise ConfigError(
                "LOSS.pos_weight and class_weight 'auto' count the labels of a split, which a loader does not tell: "
                "give a list of numbers"
            )
        if config.MODEL.gradient_checkpointing.enabled and not isinstance(self.model, Checkpointable):
            raise ConfigError(
                f"MODEL.gradient_checkpointing: {type(self.model).__name__} has no list of blocks; call "
                "hybridmednet.apply_gradient_checkpointing(model) before"
            )
        before, now = Config().model_dump(mode="json"), config.model_dump(mode="json")
        followed = (*_FOLLOWED, "MODEL") if isinstance(self.model, Checkpointable) else _FOLLOWED
        followed = tuple(key for key in followed if key != "LOSS") if self.criterion is not None else followed
        changed = [found.key for found in differences(before, now) if not _within(found.key, followed)]
        if changed:
            logger.warning("without effect where model, loaders or criterion are given: %s", ", ".join(changed))


@dataclass(frozen=True)
class _Look:
    """What a first batch shows: images and how many studies, logits [B, K], labels as they are, their form."""

    image: Tensor
    batch: int
    logits: Tensor
    label: Tensor
    form: LabelForm


class _NoLabels:
    """Nobody counted the labels: what asks for them is refused before."""

    target = np.empty((0, 1), np.float32)
    mask = np.empty((0, 1), np.bool_)
    coarse_target = None
    coarse_mask = None


def _within(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ModelError(f"model is {type(model).__name__}: it must be an nn.Module that returns logits")
    parameters = list(model.parameters())
    if not parameters:
        raise ModelError(f"{type(model).__name__} has no parameters: there is nothing to train")
    if not any(parameter.requires_grad for parameter in parameters):
        raise ModelError(f"no parameter of {type(model).__name__} requires a gradient: there is nothing to train")


def _check_criterion(criterion: Criterion) -> None:
    if not callable(criterion):
        raise TrainingError(f"criterion is {type(criterion).__name__}: it must be callable (logits, labels) → a scalar")
    if isinstance(criterion, nn.Module) and any(True for _ in criterion.parameters()):
        raise TrainingError(
            f"the criterion {type(criterion).__name__} has parameters of its own, which no checkpoint would hold: make "
            "it part of the model"
        )


def _given(first: Given | Batch) -> Given:
    """A Batch has masked labels: unknown ones are NaN in a Given."""
    if isinstance(first, Given):
        return first
    labels = torch.where(first.targets.mask, first.targets.labels, torch.nan)
    return Given(first.to(torch.device("cpu")).inputs, labels, None)


def _asked(model: nn.Module, inputs: Inputs) -> Logits:
    """The logits of the first batch in evaluation mode. Raises ModelError for what is none [B, K]."""
    studies = inputs.studies
    what = f"images {of_shape(inputs.image)}"
    device = inputs.image.device
    try:
        with evaluating(model), torch.no_grad(), seeded(0, device):
            logits = Logits.of(call_model(model, inputs))
    except HybridMedNetError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        text = " ".join(str(error).split())
        raise ModelError(f"{type(model).__name__} failed on {what} of train_loader: {text}") from error
    fine = logits.fine
    if fine.ndim != 2 or len(fine) != studies or not fine.is_floating_point():
        raise ModelError(
            f"{type(model).__name__} gave {of_shape(fine)} for {what}: it must give logits [{studies}, classes]; of "
            "one class [B, 1]"
        )
    return logits


def _settle_precision(config: Config, model: nn.Module, image: Tensor, checkpoint: FileContent | None) -> Config:
    """`resolve_precision`, where a probe can be made for the config's size of images; else contiguous."""
    if image.ndim == 4 and image.shape[1] in (1, 3):
        try:
            return resolve_precision(config, model, False, checkpoint)
        except ModelError as reason:  # on a CPU it begins with one image, which is too few for some
            logger.warning("what is fastest is not probed: %s", reason)
    settled = config.model_copy(deep=True)
    if settled.TRAIN.channels_last is True and image.ndim != 4:
        raise ConfigError(f"TRAIN.channels_last is for images [B, C, H, W], not {of_shape(image)}")
    settled.TRAIN.channels_last = False
    if settled.TRAIN.mixed_precision == "auto":
        settled.TRAIN.mixed_precision = True
    return settled
