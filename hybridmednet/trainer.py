"""Trainer: a network and loaders of one's own, trained as train.py trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from configs.default_config import Config
from configs.errors import CheckpointError, ConfigError
from utils.runs.control import Control
from utils.runs.files import CONFIG, LAST, PREVIOUS
from utils.runs.folder import find_run, folder_of
from utils.runs.result import RunResult

if TYPE_CHECKING:
    import torch
    from torch import nn

    from training.criterion import Criterion
    from training.user_loader import Batches


class Trainer:
    """Trains any network on any loaders, by the loop, the windows and the run's folder of train.py.

    model: an nn.Module that is called with images [B, C, *spatial] and returns logits [B, K], as classifiers of torch,
        timm and MONAI do; it is moved to TRAIN.device, and trained in place. Networks that declare `takes_inputs`
        (HybridMedNet) are called with Inputs.
    train_loader, val_loader, test_loader: DataLoaders, or other iterables with a length, of (image, label),
        (image, label, mask of known labels), dicts with 'image' and 'label', or Batch. Labels are class numbers, int
        [B] (-1 and -100: unknown), or [B, K] of 0 and 1 (NaN and -1: unknown). After the last epoch the best weights
        are scored on test_loader, where there is one.
    optimizer: of the model's parameters; its learning rates are multiplied by the schedule. None: the one that TRAIN
        names, with its groups.
    criterion: (logits, labels as the loader gave them) → a scalar, the mean over images; see CriterionLoss for what
        accumulation makes of it. None: the loss that LOSS names, masked and divided by the valid labels of a window.
    class_names: K of them; None: the config's, or the dataset's `classes`, or numbers.
    config: its sections TRAIN, LOSS, CHECKPOINT and LOGGING are followed: mixed precision, accumulation, moving
        average, clipping, schedule, early stopping, files, TensorBoard. None: the defaults.

    Raises HybridMedNetError in one line for what cannot be trained, as far as it can be known at once.
    """

    def __init__(
        self,
        model: nn.Module,
        train_loader: Batches,
        val_loader: Batches,
        test_loader: Batches | None = None,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        criterion: Criterion | None = None,
        class_names: Sequence[str] | None = None,
        config: Config | None = None,
    ) -> None:
        from hybridmednet.own_training import OwnTraining

        loaders = {"train_loader": train_loader, "val_loader": val_loader, "test_loader": test_loader}
        self._training = OwnTraining(model, loaders, optimizer, criterion, class_names, config)

    def train(
        self,
        epochs: int | None = None,
        folder: str | Path | None = None,
        resume: bool | str | Path = False,
        control: Control | None = None,
    ) -> RunResult:
        """Train up to `epochs` (None: TRAIN.epochs) and report; where the run's files are, and its best figures.

        folder: of the run (None: a new one in CHECKPOINT.save_dir). resume: True to go on with the run in `folder`
        where it has a checkpoint, and to begin it where it has none; or a run's folder or checkpoint. A resumed run
        ends with the weights of one that was not interrupted, as far as its loaders are functions of the epoch (see
        UserLoader). control: may ask to pause or stop; signals are not taken over.
        The model has the weights of the last step afterwards; those of the best epoch are in best_model.pth.
        Raises HybridMedNetError in one line.
        """
        from training.run import run_training

        resumed = self._resumed(folder, resume)
        own = folder_of(resumed) if resumed is not None else None if folder is None else Path(folder)
        return run_training(lambda found: self._training.prepare(found, epochs, own), resumed, control)

    def _resumed(self, folder: str | Path | None, resume: bool | str | Path) -> Path | None:
        if not isinstance(resume, bool):
            if folder is not None and Path(folder) != Path(resume):
                raise ConfigError(f"folder '{folder}' and resume '{resume}' are two runs: give one of them")
            return find_run(str(resume), self._training.config.CHECKPOINT.save_dir)
        if folder is None:
            if resume:
                raise ConfigError("resume=True needs the run's folder: train(folder=…, resume=True)")
            return None
        there = any((Path(folder) / name).is_file() for name in (CONFIG, LAST, PREVIOUS))
        if there and not resume:
            raise CheckpointError(f"there is a run in '{folder}': resume=True goes on with it, or name another folder")
        return Path(folder) if there else None
