"""What flows from the loader through the model to the loss: Inputs, Logits, Targets, and the Batch that holds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from configs.errors import ModelError
from utils.guidance import Guidance, SecondViews
from utils.mixing import Mix

# (images as they were read, parameters drawn for each) → the images that a model takes, on the device where both are.
DeviceTransform = Callable[[Tensor, Tensor], Tensor]


class Inputs(NamedTuple):
    """What a model is given: the images of B studies that are there, study after study, and a row of a table each.

    image: [M, C, *spatial], spatial (H, W) or (D, H, W); M ≤ B · V, and M = B where each study is one image. There is
    nothing in it for a view that is missing, so nothing is computed for it. Only in exported graphs, whose shapes
    cannot depend on a mask, it has all B · V slots, anything in those that are missing.
    view_mask: bool [B, V], which views a study has; their images follow one another row by row.
    view_kind: int64 [B, V], what kind of view each is. 0 where there is one kind only.
    table: float32 [B, F], 0 where unknown; F = 0 without a table. Numbers are standardised; categories are codes, from
    1 on, 0 for all that were not met in training. table_mask: bool [B, F], True: known.

    len() is the number of fields, as of any tuple: DataLoader's pinning and torch's pytrees walk it. `studies` is B.
    """

    image: Tensor
    view_mask: Tensor
    view_kind: Tensor
    table: Tensor
    table_mask: Tensor

    @classmethod
    def of_images(cls, image: Tensor) -> Inputs:
        """One image a study, no table: [B, C, *spatial] → V = 1, F = 0."""
        studies, device = image.shape[0], image.device  # not len(), which makes a number of an exported graph's batch
        return cls(
            image,
            torch.ones(studies, 1, dtype=torch.bool, device=device),
            torch.zeros(studies, 1, dtype=torch.int64, device=device),
            torch.zeros(studies, 0, device=device),
            torch.zeros(studies, 0, dtype=torch.bool, device=device),
        )

    @property
    def studies(self) -> int:
        """B."""
        return len(self.view_mask)

    def single_images(self) -> Tensor:
        """The images [B, C, *spatial], for a model that takes one image a study and no table.

        Only shapes are looked at, so nothing waits for the device. Raises ModelError for other studies.
        """
        studies, views = self.view_mask.shape
        if (views, self.table.shape[1], len(self.image)) != (1, 0, studies):
            raise ModelError(
                f"this model takes one image a study and no table, not {len(self.image)} images of {studies} studies "
                f"with up to {views} views and {self.table.shape[1]} columns of a table"
            )
        return self.image

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.preserve_format) -> Inputs:
        """On a device, the images in a memory format; from pinned memory without waiting."""
        image = self.image.to(device, non_blocking=True, memory_format=memory_format)
        return Inputs(image, *(tensor.to(device, non_blocking=True) for tensor in self[1:]))

    def split(self, parts: int) -> list[Inputs]:
        """In `parts` of nearly equal numbers of studies, the larger ones first, or in B where B is less.

        The device is waited for only where views are missing: then the images of each part must be counted.
        """
        parts = min(parts, self.studies)
        if parts <= 1:
            return [self]
        rows = [tensor.tensor_split(parts) for tensor in self[1:]]
        images = torch.split(self.image, self._images_of(rows[0]))
        return [Inputs(image, *others) for image, *others in zip(images, *rows, strict=True)]

    def _images_of(self, masks: Sequence[Tensor]) -> list[int]:
        """How many images belong to each of these rows of view_mask."""
        views = self.view_mask.shape[1]
        if len(self.image) == self.studies * views:
            return [len(mask) * views for mask in masks]
        counts: list[int] = torch.stack([mask.sum() for mask in masks]).tolist()
        return counts


class Targets(NamedTuple):
    """What is known of B studies.

    labels: float32 [B, K]. mask: bool [B, K], True where the label is known.
    coarse, coarse_mask: the same of the coarse classes, [B, G]; None without them.
    given: labels as a user's own loader gave them, [B, …], for a user's own criterion; None: there is none.
    """

    labels: Tensor
    mask: Tensor
    coarse: Tensor | None = None
    coarse_mask: Tensor | None = None
    given: Tensor | None = None

    def to(self, device: torch.device) -> Targets:
        """On a device; from pinned memory without waiting."""
        labels, mask = self.labels.to(device, non_blocking=True), self.mask.to(device, non_blocking=True)
        return Targets(labels, mask, *(t if t is None else t.to(device, non_blocking=True) for t in self[2:]))

    def split(self, parts: int) -> list[Targets]:
        """In `parts`, as Inputs are; parts is at most B."""
        columns = [[None] * parts if tensor is None else tensor.tensor_split(parts) for tensor in self]
        return [Targets(*row) for row in zip(*columns, strict=True)]


class Logits(NamedTuple):
    """What a model says of B studies: fine [B, K]; coarse [B, G] of a hierarchical model, else None.

    A hierarchical model returns one of these, which unpacks to (coarse, fine); a flat one returns a plain Tensor.
    """

    coarse: Tensor | None
    fine: Tensor

    @classmethod
    def of(cls, outputs: object) -> Logits:
        """From what any model returns: a Tensor, Logits, or a pair (coarse, fine).

        Modules that are not of this program may return anything: ModelError for anything else.
        """
        if isinstance(outputs, Tensor):
            return cls(None, outputs)
        if isinstance(outputs, tuple) and len(outputs) == 2:
            coarse, fine = outputs
            if isinstance(fine, Tensor) and (coarse is None or isinstance(coarse, Tensor)):
                return cls(coarse, fine)
        inside = f" of {', '.join(type(one).__name__ for one in outputs)}" if isinstance(outputs, (tuple, list)) else ""
        raise ModelError(
            f"a model returned {type(outputs).__name__}{inside}: it must be logits, a Tensor [B, classes], or a tuple "
            "(coarse logits, fine logits)"
        )


@dataclass
class Batch:
    """One micro-batch of B studies.

    index: int64 [B], rows of the dataset index. device_transform: what makes the model's images of inputs.image (uint8
    or float32, [M, c, *spatial]) and augmentation_params ([M, P]) as soon as both are on a device; None where the
    images are finished. guidance: for attention that is taught, else None. mix: what is still to be done to the
    finished images; the targets are mixed already.
    """

    inputs: Inputs
    targets: Targets
    index: Tensor
    augmentation_params: Tensor | None = None
    device_transform: DeviceTransform | None = None
    guidance: Guidance | None = None
    mix: Mix | None = None

    def __len__(self) -> int:
        """Studies."""
        return len(self.index)

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.contiguous_format) -> Batch:
        """The same batch on a device, finished there, the images in a memory format."""
        as_read = self.device_transform is None or self.augmentation_params is None
        inputs = self.inputs.to(device, memory_format if as_read else torch.preserve_format)
        guidance = None if self.guidance is None else self._guidance_on(device, inputs.image, memory_format)
        if self.device_transform is not None and self.augmentation_params is not None:
            params = self.augmentation_params.to(device, non_blocking=True)
            image = self.device_transform(inputs.image, params).contiguous(memory_format=memory_format)
            inputs = inputs._replace(image=image)
        if self.mix is not None:
            inputs = inputs._replace(image=self.mix.images(inputs.image).contiguous(memory_format=memory_format))
        index = self.index.to(device, non_blocking=True)
        return Batch(inputs, self.targets.to(device), index, guidance=guidance)

    def _guidance_on(self, device: torch.device, fitted: Tensor, memory_format: torch.memory_format) -> Guidance | None:
        """fitted: the images on the device, before the device's transform."""
        if self.guidance is None:
            return None
        regions, second = self.guidance
        if second is not None:
            maps, image = second.maps.to(device, non_blocking=True), second.image
            if image is not None:
                image = image.to(device, non_blocking=True, memory_format=memory_format)
            elif self.device_transform is not None and second.params is not None:
                params = second.params.to(device, non_blocking=True)
                image = self.device_transform(fitted, params).contiguous(memory_format=memory_format)
            second = SecondViews(image, None, maps)
        return Guidance(None if regions is None else regions.to(device), second)

    def split(self, parts: int) -> list[Batch]:
        """In `parts` of nearly equal numbers of studies, the larger ones first, or in B where B is less."""
        parts = min(parts, len(self.index))
        if parts <= 1:
            return [self]
        if self.mix is not None:  # while the partners are together
            return self.to(self.inputs.image.device).split(parts)
        inputs = self.inputs.split(parts)
        params: Sequence[Tensor | None] = [None] * parts
        if self.augmentation_params is not None:
            params = torch.split(self.augmentation_params, [len(part.image) for part in inputs])
        index = self.index.tensor_split(parts)
        guidance: Sequence[Guidance | None] = [None] * parts
        if self.guidance is not None:
            guidance = self.guidance.split(list(map(len, index)), [len(part.image) for part in inputs])
        columns = (inputs, self.targets.split(parts), index, params)
        rows = zip(zip(*columns, strict=True), guidance, strict=True)
        return [Batch(*row, self.device_transform, guided) for row, guided in rows]


def call_model(model: Callable[..., object], inputs: Inputs) -> object:
    """model(inputs) where the model declares `takes_inputs = True`, as HybridMedNet does; else model(images).

    A module from elsewhere is an ordinary nn.Module of a tensor [B, C, *spatial]; what it cannot be given (several
    views, a table) is a ModelError. Wrappers are looked through by the names under which torch's keep their module:
    `module` (DistributedDataParallel, AveragedModel) and `_orig_mod` (torch.compile). Returns what the model does; see
    `Logits.of`.
    """
    return model(inputs if takes_inputs(model) else inputs.single_images())


def takes_inputs(model: object) -> bool:
    """Whether a model, or what it wraps, declares that it is called with Inputs."""
    while not hasattr(model, "takes_inputs"):
        inner = next((getattr(model, name) for name in ("module", "_orig_mod") if hasattr(model, name)), None)
        if inner is None:
            return False
        model = inner
    return bool(model.takes_inputs)
