"""Made features of studies, with labels of which the best possible AUROC is known, and a training on them.

Labels are flipped in a tenth of the studies, so that no score is above about 0.89.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from models.studies import StudyMixer
from utils.batch import Inputs

CHANNELS, SIDE, COLUMNS, FLIPPED = 64, 7, 6, 0.1
_DIRECTIONS = np.random.default_rng(5).normal(size=(4, CHANNELS)).astype(np.float32)


class Studies(NamedTuple):
    """vectors [M, 2C] or [M, C], what a head would pool; maps [M, C, *side]; labels [B]; truth [B] before the flips."""

    vectors: Tensor
    maps: Tensor
    inputs: Inputs
    labels: Tensor
    truth: np.ndarray

    def rows(self, index: Tensor) -> "Studies":
        """Some studies, of one view each or of as many slots each (absent ones are zeros)."""
        slots = self.inputs.view_mask.shape[1]
        images = (index[:, None] * slots + torch.arange(slots)).flatten()
        inputs = Inputs(self.inputs.image[images], *(tensor[index] for tensor in self.inputs[1:]))
        return Studies(self.vectors[images], self.maps[images], inputs, self.labels[index], self.truth[index.numpy()])


def findings_and_table(task: str, count: int, seed: int) -> Studies:
    """A finding on either side of a 7 × 7 map, of the same look; column 0 is the sex, 1 names a side, others are noise.

    xor: a finding somewhere, the other way round for one sex. side: a finding on the side that the table names.
    """
    rng = np.random.default_rng(seed)
    left, right, sex, side = (rng.random(count) < 0.5 for _ in range(4))
    maps = rng.normal(0, 0.6, (count, SIDE, SIDE, CHANNELS)).astype(np.float32)
    for i in range(count):
        if left[i]:
            maps[i, rng.integers(SIDE), rng.integers(3)] += _DIRECTIONS[0]
        if right[i]:
            maps[i, rng.integers(SIDE), 4 + rng.integers(3)] += _DIRECTIONS[0]
    table = rng.normal(size=(count, COLUMNS)).astype(np.float32)
    table[:, 0], table[:, 1] = np.where(sex, 1, -1), np.where(side, 1, -1)
    truth = (left | right) ^ sex if task == "xor" else np.where(side, left, right)
    vectors = np.concatenate([maps.mean((1, 2)), maps.max((1, 2))], axis=1)
    images = torch.from_numpy(maps).permute(0, 3, 1, 2).contiguous()
    inputs = Inputs.of_images(torch.zeros(count, 1))
    inputs = inputs._replace(table=torch.from_numpy(table), table_mask=torch.ones(count, COLUMNS, dtype=torch.bool))
    return Studies(torch.from_numpy(vectors), images, inputs, _flipped(truth, rng), truth)


def two_views(task: str, count: int, seed: int, missing: float = 0.3) -> Studies:
    """A frontal and a lateral view, one of them missing in some studies.

    lateral_only: the sign is in the lateral view, and the frontal one says nothing. view_matters: the same sign in the
    frontal view is harmless. both: two signs are needed.
    """
    rng = np.random.default_rng(seed)
    mask = np.ones((count, 2), bool)
    gone = np.flatnonzero(rng.random(count) < missing)
    mask[gone, rng.integers(0, 2, len(gone))] = False
    frontal, lateral = rng.random(count) < 0.5, rng.random(count) < 0.5
    vectors = rng.normal(size=(count, 2, CHANNELS)).astype(np.float32)
    vectors[lateral, 1] += 0.8 * _DIRECTIONS[1 if task == "both" else 0]
    if task != "lateral_only":
        vectors[frontal, 0] += 0.8 * _DIRECTIONS[0]
    truth = frontal & lateral if task == "both" else lateral
    slots = torch.from_numpy(vectors * mask[..., None]).flatten(0, 1)
    kinds = torch.arange(2).expand(count, 2).contiguous()
    empty = torch.zeros(count, 0)
    inputs = Inputs(torch.zeros(2 * count, 1), torch.from_numpy(mask), kinds, empty, empty.bool())
    return Studies(slots, slots[:, :, None, None], inputs, _flipped(truth, rng), truth)


def _flipped(truth: np.ndarray, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy((truth ^ (rng.random(len(truth)) < FLIPPED)).astype(np.float32))


class Network(nn.Module):
    """Vectors as a head pools them, a mixer or none, a layer or a small network behind it."""

    def __init__(self, mixer: StudyMixer | None, pooled: bool, hidden: int = 0) -> None:
        super().__init__()
        mix = nn.Sequential(nn.Linear(2 * CHANNELS, CHANNELS), nn.BatchNorm1d(CHANNELS), nn.ReLU())
        self.mix, self.mixer = mix if pooled else nn.Identity(), mixer
        self.head: nn.Module = nn.Linear(CHANNELS, 1)
        if hidden:
            small = nn.Linear(CHANNELS, hidden), nn.ReLU(), nn.Linear(hidden, 1)
            self.head = nn.Sequential(nn.BatchNorm1d(CHANNELS), *small)

    def forward(self, studies: Studies) -> Tensor:
        v = self.mix(studies.vectors)
        return self.head(v if self.mixer is None else self.mixer(v, studies.maps, studies.inputs))[:, 0]


def train(
    network: nn.Module,
    studies: Studies,
    epochs: int,
    rate: float = 3e-3,
    seed: int = 0,
    disturb: Callable[[Studies, torch.Generator], Studies] = lambda studies, generator: studies,
) -> None:
    """AdamW, one cycle, batches of 100."""
    count, generator = len(studies.labels), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * (count // 100))
    network.train()
    for _ in range(epochs):
        for index in torch.randperm(count, generator=generator).split(100):
            batch = disturb(studies.rows(index), generator)
            loss = F.binary_cross_entropy_with_logits(network(batch), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def auroc(network: nn.Module, studies: Studies) -> float:
    """In evaluation mode."""
    network.eval()
    with torch.no_grad():
        return float(roc_auc_score(studies.labels, network(studies)))


def best_possible(studies: Studies) -> float:
    """AUROC of the labels before they were flipped."""
    return float(roc_auc_score(studies.labels, studies.truth))


def without_view(studies: Studies, slot: int) -> Studies:
    """The same studies, nothing in this slot."""
    mask = studies.inputs.view_mask.clone()
    mask[:, slot] = False
    return studies._replace(inputs=studies.inputs._replace(view_mask=mask))


def without_table(studies: Studies) -> Studies:
    """The same studies, no value known."""
    return studies._replace(inputs=studies.inputs._replace(table_mask=torch.zeros_like(studies.inputs.table_mask)))


def dropping_tables(chance: float) -> Callable[[Studies, torch.Generator], Studies]:
    """A disturbance for `train`: whole rows of the table are withheld."""

    def disturb(studies: Studies, generator: torch.Generator) -> Studies:
        mask = studies.inputs.table_mask & (torch.rand(len(studies.labels), 1, generator=generator) >= chance)
        return studies._replace(inputs=studies.inputs._replace(table_mask=mask))

    return disturb
