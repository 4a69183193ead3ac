"""Heads: a fused map → logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers import global_average_and_max, norm_nd
from models.studies import StudyMixer
from utils.batch import Inputs, Logits


class PooledFeatures(nn.Sequential):
    """Mean and maximum over the map, mixed by a linear layer. [B, C, *spatial] → [B, C].

    norm: of the mixed vector, see `norm_nd`.
    """

    def __init__(self, channels: int, dropout: float, norm: str = "batch") -> None:
        mix, normalise = nn.Linear(2 * channels, channels), norm_nd(norm, 0, channels)
        super().__init__(mix, normalise, nn.ReLU(), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(global_average_and_max(x))


class ClasswiseMLP(nn.Module):
    """A two-layer network of its own for each class, all computed at once. [B, C] → [B, num_classes].

    logit_k = w2_k · dropout(ReLU(W1_k x + b1_k)) + b2_k, with C/4 hidden units per class.
    """

    def __init__(self, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        hidden = max(channels // 4, 1)
        self.hidden = nn.Linear(channels, num_classes * hidden)
        self.dropout = nn.Dropout(dropout)
        self.weight = nn.Parameter(torch.empty(num_classes, hidden))
        self.bias = nn.Parameter(torch.empty(num_classes))
        bound = hidden**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(self.hidden(x).relu()).unflatten(1, self.weight.shape)
        # Kept and squeezed, which changes no number: OpenVINO 2026.4 folds a bias into the sum before it, and that is
        # wrong for more than one image.
        return (hidden * self.weight).sum(-1, keepdim=True).squeeze(-1) + self.bias


class StudyHead(nn.Module):
    """What heads share: a vector per image, and of these one per study.

    study: joins the views and adds the table of a study; None, unless it is set: a study is one image.
    """

    def __init__(self, channels: int, dropout: float, norm: str) -> None:
        super().__init__()
        self.feature_fusion = PooledFeatures(channels, dropout, norm)
        self.study: StudyMixer | None = None

    def vectors(self, x: Tensor, inputs: Inputs | None = None) -> Tensor:
        """Fused maps [M, C, *spatial] of the images of `inputs`, None: of B single images → [B, C]."""
        if self.study is None:
            return self.feature_fusion(x)
        return self.study(self.pooled(x), x, Inputs.of_images(x) if inputs is None else inputs)

    def classify(self, vectors: Tensor) -> Tensor | Logits:
        """Vectors of studies [B, C] → logits, as `forward` returns them."""
        raise NotImplementedError

    def pooled(self, x: Tensor) -> Tensor:
        """A vector per image; batch statistics are those of the images that are there, of which there may be none."""
        return self.feature_fusion(x) if x.shape[0] else x.new_zeros(0, x.shape[1])


class MultiLabelHead(StudyHead):
    """One logit per class from a shared pooled vector. [M, C, *spatial], Inputs → [B, num_classes]."""

    def __init__(self, channels: int, num_classes: int, dropout: float = 0.5, norm: str = "batch") -> None:
        super().__init__(channels, dropout, norm)
        self.classifiers = ClasswiseMLP(channels, num_classes, dropout / 2)

    def forward(self, x: Tensor, inputs: Inputs | None = None) -> Tensor:
        return self.classify(self.vectors(x, inputs))

    def classify(self, vectors: Tensor) -> Tensor:
        """[B, C] → [B, num_classes]."""
        return self.classifiers(vectors)


class HierarchicalHead(StudyHead):
    """Coarse logits first; the fine ones see them.

    [M, C, *spatial], Inputs → Logits([B, num_coarse], [B, num_classes]).
    """

    def __init__(
        self, channels: int, num_coarse_classes: int, num_classes: int, dropout: float = 0.5, norm: str = "batch"
    ) -> None:
        super().__init__(channels, dropout, norm)
        self.coarse_classifier = _mlp(channels, channels // 2, num_coarse_classes, dropout, norm)
        self.fine_classifier = _mlp(channels + num_coarse_classes, channels // 2, num_classes, dropout, norm)

    def forward(self, x: Tensor, inputs: Inputs | None = None) -> Logits:
        return self.classify(self.vectors(x, inputs))

    def classify(self, vectors: Tensor) -> Logits:
        """[B, C] → Logits([B, num_coarse], [B, num_classes])."""
        coarse = self.coarse_classifier(vectors)
        return Logits(coarse, self.fine_classifier(torch.cat([vectors, coarse], dim=1)))


def _mlp(inputs: int, hidden: int, outputs: int, dropout: float, norm: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), norm_nd(norm, 0, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, outputs)
    )
