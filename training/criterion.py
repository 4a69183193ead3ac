"""A user's own criterion as a loss of whole windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from configs.errors import TrainingError
from training.user_batches import of_shape
from utils.batch import Inputs, Logits, Targets
from utils.out_of_memory import is_out_of_memory

Criterion = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class CriterionLoss:
    """criterion(logits float32 [B, …], labels as the loader gave them) → a scalar, the mean over the B images.

    A window's loss is the mean of its micro-batches' values, each weighted by its number of images: for a criterion
    that is a mean over images, that of the whole window, however it is cut. One that divides by something else (the
    known labels, as with `ignore_index`; the sum of class weights) is a mean of such means. One that adds up its images
    grows with the micro-batch. exclusive: whether exactly one class is present, for the figures of the validation.
    """

    criterion: Criterion
    exclusive: bool

    @property
    def terms(self) -> tuple[str, ...]:
        return ("labels",)

    def counts(self, targets: Targets) -> dict[str, int]:
        """Images."""
        return {"labels": len(targets.labels)}

    def sums(self, logits: Logits, targets: Targets, inputs: Inputs | None = None) -> dict[str, Tensor]:
        """The criterion's value times the number of images."""
        assert targets.given is not None, "a batch of a UserLoader"
        return {"labels": self.value(logits.fine.float(), targets.given) * len(targets.labels)}

    def total(self, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> Tensor:
        """The mean over all images."""
        return sums["labels"] / max(counts["labels"], 1)

    def value(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The criterion's; TrainingError where it cannot take these, or gives no scalar."""
        asked = f"on logits {of_shape(logits)} and labels {of_shape(labels)}"
        try:
            value = self.criterion(logits, labels)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if is_out_of_memory(error):
                raise
            raise TrainingError(f"the criterion {self.name} failed {asked}: {' '.join(str(error).split())}") from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            found = of_shape(value) if isinstance(value, Tensor) else type(value).__name__
            raise TrainingError(f"the criterion {self.name} gave {found} {asked}: it must give one number, the mean")
        return value.reshape(())

    @property
    def name(self) -> str:
        return (
            type(self.criterion).__name__
            if isinstance(self.criterion, nn.Module)
            else str(getattr(self.criterion, "__name__", type(self.criterion).__name__))
        )
