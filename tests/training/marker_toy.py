"""A toy of a shortcut: a blob says what an image has, and a marker in its corner goes with that in training only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from training.attention_supervision import AttentionSupervision, class_activation, consistency_losses
from training.losses import TrainingLoss, binary_cross_entropy
from training.precision import Precision
from utils.batch import Batch, Inputs, Logits, Targets
from utils.guidance import ANY_CLASS, Guidance, Regions, SecondViews

SIDE, FLOAT32 = 32, Precision("cpu", None)


class Observed(NamedTuple):
    logits: Logits
    fused: Tensor
    attended: tuple[Tensor, ...]


class Centres(NamedTuple):
    levels: list[list[Tensor]]
    fused: list[Tensor]


@dataclass
class Attention:
    observes: str


class AttentionPooling(nn.Module):
    """Convolutions → a map → the mean weighed by attention over places → logits: linear in the map."""

    takes_inputs: ClassVar[bool] = True

    def __init__(self, width: int = 24, classes: int = 1) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, 2, 1), nn.GroupNorm(4, width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 2, 1), nn.GroupNorm(4, width), nn.ReLU(),
        )  # fmt: skip
        self.place = nn.Conv2d(width, 1, 1)
        self.head = nn.Linear(width, classes)
        self.attention = Attention("shares")

    def forward(self, x: Tensor | Inputs) -> Tensor:
        return self.observe(x).logits.fine

    def observe(self, x: Tensor | Inputs) -> Observed:
        fused = self.features(x.image if isinstance(x, Inputs) else x)
        share = self.place(fused).flatten(1).softmax(1).reshape(len(fused), *fused.shape[2:])
        logits = self.head((fused * share[:, None]).sum((2, 3)))
        return Observed(Logits(None, logits), fused, (share,))

    def level_cells(self) -> list[tuple[int, int]]:
        return [(SIDE // 4, SIDE // 4)]

    def cell_centres(self, size: Sequence[int], levels: Sequence[Sequence[int]]) -> Centres:
        axis = 4.0 * torch.arange(SIDE // 4, dtype=torch.float64)
        return Centres([[axis, axis]], [axis, axis])


class Toy(NamedTuple):
    image: Tensor
    label: Tensor
    region: Tensor  # uint8 [N, H, W]


def draw(count: int, agrees: float, seed: int) -> Toy:
    """agrees: how often the marker goes with the label: 0.9 in training, 0.5 at random."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 0.35, (count, 1, SIDE, SIDE))
    label = rng.integers(0, 2, count)
    region = np.zeros((count, SIDE, SIDE), np.uint8)
    for i, (positive, follows) in enumerate(zip(label, rng.random(count) < agrees)):
        top, left = rng.integers(8, SIDE - 10, 2)
        # A ring or a disc of the same sum: the shape tells, brightness does not.
        patch = np.ones((8, 8))
        if positive:
            patch[2:6, 2:6] = 0.0
        patch *= 40.0 / patch.sum()
        image[i, 0, top : top + 8, left : left + 8] += patch
        region[i, top : top + 8, left : left + 8] = 255
        if positive == follows:
            image[i, 0, 1:5, 1:5] += 1.5
    labels = torch.tensor(label, dtype=torch.float32)[:, None]
    return Toy(torch.tensor(image, dtype=torch.float32), labels, torch.tensor(region))


def regions_of(share: Tensor, rows: Tensor) -> Regions:
    """A region in each of these rows of a batch of single images."""
    return Regions(share, rows, rows, torch.full_like(rows, ANY_CLASS), torch.zeros_like(rows), 1)


def flipped(image: Tensor) -> SecondViews:
    identity = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    mirror = torch.tensor([[-1.0, 0, SIDE - 1], [0, 1, 0]])
    return SecondViews(image.flip(3), None, torch.stack([identity, mirror]).expand(len(image), -1, -1, -1))


def batch_of(toy: Toy, rows: Tensor, annotated: Tensor, second: bool = False) -> Batch:
    """annotated: bool [len(rows)], which of them have their region."""
    at = annotated.nonzero()[:, 0]
    image, label = toy.image[rows], toy.label[rows]
    regions = regions_of(toy.region[rows][at], at) if len(at) else None
    guidance = Guidance(regions, flipped(image) if second else None)
    targets = Targets(label, torch.ones_like(label, dtype=torch.bool))
    return Batch(Inputs.of_images(image), targets, rows, guidance=guidance)


def train(method: str | None, weight: float, seed: int, share: float = 1.0, epochs: int = 14) -> AttentionPooling:
    """share: of the images that have a region."""
    torch.manual_seed(seed)
    toy, model = draw(600, 0.9, seed), AttentionPooling()
    annotated = torch.rand(len(toy.image)) < share
    supervision = AttentionSupervision(model, method, weight) if method else None
    loss, optimizer = TrainingLoss(binary_cross_entropy), torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(toy.image)).split(32):
            batch = batch_of(toy, rows, annotated[rows], method == "consistency")
            if supervision is None:
                logits, extra = Logits(None, model(batch.inputs)), 0.0
            else:
                logits, sums = supervision(batch, FLOAT32)
                extra = supervision.total(sums, supervision.counts(batch))
            total = loss.total(loss.sums(logits, batch.targets), loss.counts(batch.targets)) + extra
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def auroc(model: nn.Module, agrees: float) -> float:
    toy = draw(1000, agrees, 99)
    return float(roc_auc_score(toy.label[:, 0], model(toy.image)[:, 0]))


def map_distance(model: AttentionPooling) -> float:
    """The mean squared difference of maps of images and of their mirror images, as a share of the maps' own squares."""
    toy = draw(200, 0.5, 98)
    weights = torch.ones(len(toy.image), 1)
    maps = []
    for image in (toy.image, toy.image.flip(3)):
        observed = model.observe(image)
        maps.append(class_activation(observed.logits.fine, weights, observed.fused, create_graph=False).detach())
    views = flipped(toy.image).maps
    axis = model.cell_centres((SIDE, SIDE), model.level_cells()).fused
    return float(consistency_losses(*maps, views, axis, (SIDE, SIDE)).mean() / maps[0].square().mean())
