"""Studies of a batch mixed with one another, images and labels alike: mixup and CutMix."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from utils.batch import Targets


class Mix(NamedTuple):
    """How the B studies of a batch are mixed: each with one partner.

    partner: int64 [B], on the CPU. share: λ, how much of a study is its own. box: (first, end) per spatial axis, which
    is the partner's, of which share is what remains; None: both images are added up all over.
    """

    partner: Tensor
    share: float
    box: tuple[tuple[int, int], ...] | None = None

    def images(self, image: Tensor) -> Tensor:
        """[B, C, *spatial], finished, on any device → the same shape, type and memory format.

        mixup (Zhang et al., ICLR 2018, arXiv:1710.09412): λ a + (1 − λ) b. CutMix (Yun et al., ICCV 2019,
        arXiv:1905.04899): b within the box, a outside.
        """
        other = image[self.partner.to(image.device, non_blocking=True)]
        if self.box is None:
            return image * self.share + other * (1 - self.share)
        inside = (slice(None), slice(None), *(slice(*edges) for edges in self.box))
        mixed = image.clone()
        mixed[inside] = other[inside]
        return mixed

    def targets(self, targets: Targets) -> Targets:
        """Labels λ a + (1 − λ) b, known where both are; those of coarse classes alike. On the CPU.

        So counts stay whole numbers, and the term of a label is λ times that of a plus (1 − λ) times that of b, as
        cross-entropies are linear in it. What is known of one image alone says nothing certain of the mixed one.
        """
        labels, mask = self._mixed(targets.labels, targets.mask)
        mixed = targets._replace(labels=labels, mask=mask)
        if targets.coarse is None or targets.coarse_mask is None:
            return mixed
        coarse, coarse_mask = self._mixed(targets.coarse, targets.coarse_mask)
        return mixed._replace(coarse=coarse, coarse_mask=coarse_mask)

    def _mixed(self, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        known = mask & mask[self.partner]
        mixed = labels * self.share + labels[self.partner] * (1 - self.share)
        return mixed.where(known, 0.0), known
