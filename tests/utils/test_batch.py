"""The pytree from loader to loss: splitting against a slow loop, ragged studies too, moving, and who gets what."""

import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from configs.errors import ModelError
from utils.batch import Batch, Inputs, Logits, Targets, call_model, takes_inputs

CPU = torch.device("cpu")


def studies(view_mask: torch.Tensor, columns: int = 0, seed: int = 0) -> Inputs:
    """Random inputs with these views; every number is different, so that nothing can be mixed up unseen."""
    generator = torch.Generator().manual_seed(seed)
    count, views = view_mask.shape
    image = torch.randn(int(view_mask.sum()), 2, 3, 3, generator=generator)
    kinds = torch.arange(count * views).reshape(count, views)
    table = torch.randn(count, columns, generator=generator)
    return Inputs(image, view_mask, kinds, table, torch.rand(count, columns, generator=generator) < 0.5)


def batch_of(view_mask: torch.Tensor, columns: int = 0, coarse: int = 0, params: bool = False) -> Batch:
    inputs = studies(view_mask, columns)
    count = inputs.studies
    labels = torch.arange(count * 3.0).reshape(count, 3)
    groups = (labels[:, :coarse] + 0.5, labels[:, :coarse] > 4) if coarse else ()
    numbers = torch.randn(len(inputs.image), 8) if params else None
    transform = (lambda image, p: image * p[:, :1, None, None]) if params else None
    return Batch(inputs, Targets(labels, labels > 2, *groups), torch.arange(count) + 100, numbers, transform)


def one_by_one(inputs: Inputs) -> list[tuple]:
    """Each study's own (images, row of view_mask, kinds, table, table_mask), by a loop over views."""
    found, at = [], 0
    for b in range(len(inputs.view_mask)):
        images = []
        for there in inputs.view_mask[b].tolist():
            if there:
                images.append(inputs.image[at])
                at += 1
        found.append((images, *(tensor[b] for tensor in inputs[1:])))
    assert at == len(inputs.image)
    return found


def same_studies(one: list[tuple], other: list[tuple]) -> bool:
    def same(a, b) -> bool:
        if isinstance(a, list):
            return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))
        return torch.equal(a, b)

    return len(one) == len(other) and all(same(x, y) for a, b in zip(one, other) for x, y in zip(a, b, strict=True))


MASKS = {
    "single": torch.ones(7, 1, dtype=torch.bool),
    "two whole views": torch.ones(5, 2, dtype=torch.bool),
    "ragged": torch.tensor([[1, 1, 0], [0, 0, 1], [1, 1, 1], [0, 1, 0], [1, 0, 1], [1, 1, 1], [0, 0, 1]]).bool(),
    "one view, not always there": torch.tensor([[1], [0], [1], [1], [0]]).bool(),
    "one study": torch.tensor([[1, 0, 1]]).bool(),
}


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 5, 7, 8, 100])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("columns", [0, 4])
def test_split_is_the_slow_loop(name, parts, columns):
    inputs = studies(MASKS[name], columns)
    pieces = inputs.split(parts)
    assert same_studies([study for piece in pieces for study in one_by_one(piece)], one_by_one(inputs))
    sizes = [piece.studies for piece in pieces]
    assert len(sizes) == min(parts, inputs.studies) and max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True) and max(sizes) == -(-inputs.studies // len(sizes))
    assert all(piece.table.shape[1] == columns for piece in pieces)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize(("coarse", "params"), [(0, False), (2, True)])
def test_a_batch_is_split_with_all_that_belongs_to_it(name, coarse, params):
    batch = batch_of(MASKS[name], 2, coarse, params)
    pieces = batch.split(3)
    assert [len(piece) for piece in pieces] == [piece.inputs.studies for piece in pieces]
    assert torch.equal(torch.cat([piece.index for piece in pieces]), batch.index)
    whole, at = batch.to(CPU), 0
    assert same_studies(
        [study for piece in pieces for study in one_by_one(piece.to(CPU).inputs)], one_by_one(whole.inputs)
    )
    for piece in pieces:
        for one, all_of_them in zip(piece.targets, batch.targets, strict=True):
            assert (one is None) == (all_of_them is None)
            assert one is None or torch.equal(one, all_of_them[at : at + len(piece)])
        at += len(piece)
        assert (piece.augmentation_params is None) == (not params) == (piece.device_transform is None)
    assert batch.split(1) == [batch] and len(batch.split(100)) == len(batch)


def test_whole_views_are_split_without_a_look_at_the_masks():
    """On the meta device, where a number cannot be read: as it is on a GPU, without waiting for it."""
    for views in (1, 3):
        image, mask = torch.empty(4 * views, 1, 8, 8, device="meta"), torch.empty(4, views, device="meta").bool()
        inputs = Inputs(image, mask, mask.long(), torch.empty(4, 0, device="meta"), torch.empty(4, 0, device="meta"))
        assert [len(piece.image) for piece in inputs.split(3)] == [2 * views, views, views]
    assert Inputs.of_images(image[:4]).single_images().shape == (4, 1, 8, 8)


def test_one_image_a_study():
    image = torch.randn(5, 3, 4, 4, 4)
    inputs = Inputs.of_images(image)
    assert inputs.single_images() is image and inputs.studies == 5 and len(inputs) == 5 == len(Inputs._fields)
    assert inputs.view_mask.shape == (5, 1) and inputs.view_mask.dtype == torch.bool and inputs.view_mask.all()
    assert inputs.view_kind.dtype == torch.int64 and inputs.table.shape == inputs.table_mask.shape == (5, 0)
    assert inputs.table.dtype == torch.float32 and inputs.table_mask.dtype == torch.bool


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (studies(MASKS["two whole views"]), "10 images of 5 studies with up to 2 views"),
        (studies(MASKS["one view, not always there"]), "3 images of 5 studies"),
        (studies(MASKS["single"], 4), "4 columns of a table"),
    ],
)
def test_a_model_of_single_images_refuses_other_studies(inputs, words):
    with pytest.raises(ModelError, match=words):
        inputs.single_images()
    with pytest.raises(ModelError, match=words):
        call_model(nn.Identity(), inputs)


def test_moving_takes_everything_along_and_finishes_the_images():
    batch = batch_of(MASKS["ragged"], 2, 2, params=True)
    there = batch.to(CPU, torch.channels_last)
    expected = batch.inputs.image * batch.augmentation_params[:, :1, None, None]
    assert torch.equal(there.inputs.image, expected)
    assert there.inputs.image.is_contiguous(memory_format=torch.channels_last)
    assert there.augmentation_params is None and there.device_transform is None
    again = there.to(CPU, torch.channels_last)
    assert again.inputs.image is there.inputs.image  # what is there is not sent or transformed again
    meta = batch_of(MASKS["ragged"], 2, 2).to(torch.device("meta"))
    tensors = [*meta.inputs, *meta.targets[:4], meta.index]
    assert len(tensors) == 10 and meta.targets.given is None and all(tensor.is_meta for tensor in tensors)


class Twelve(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> Inputs:
        return studies(torch.tensor([[True, i % 2 == 0]]), 2, seed=i)


def together(items: list[Inputs]) -> Inputs:
    return Inputs(*(torch.cat(column) for column in zip(*items)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_loader_hands_on_inputs(workers):
    (found,) = list(DataLoader(Twelve(), batch_size=12, num_workers=workers, collate_fn=together))
    expected = together([Twelve()[i] for i in range(12)])
    assert isinstance(found, Inputs) and same_studies(one_by_one(found), one_by_one(expected))
    assert same_studies(one_by_one(pickle.loads(pickle.dumps(found))), one_by_one(expected))


def test_logits_of_whatever_models_return():
    coarse, fine = torch.randn(2, 3), torch.randn(2, 5)
    assert Logits.of(fine) == (None, fine)
    for pair in ((coarse, fine), Logits(coarse, fine), Logits(None, fine)):
        found = Logits.of(pair)
        assert isinstance(found, Logits) and found.coarse is pair[0] and found.fine is fine
    first, second = Logits(coarse, fine)
    assert first is coarse and second is fine


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({"logits": torch.zeros(1)}, "a model returned dict: it must be logits"),
        ([torch.zeros(1), torch.zeros(1)], "returned list of Tensor, Tensor"),
        ((torch.zeros(1),) * 3, "returned tuple of Tensor, Tensor, Tensor"),
        ((torch.zeros(1), None), "returned tuple of Tensor, NoneType"),
        (("coarse", torch.zeros(1)), "returned tuple of str, Tensor"),
        (None, "returned NoneType"),
    ],
)
def test_what_is_no_logits_is_refused(outputs, words):
    with pytest.raises(ModelError, match=words):
        Logits.of(outputs)


class OfInputs(nn.Module):
    takes_inputs = True

    def forward(self, inputs: Inputs) -> torch.Tensor:
        assert isinstance(inputs, Inputs)
        return inputs.single_images().mean((1, 2, 3))


class OfImages(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        assert isinstance(image, torch.Tensor)
        return image.mean((1, 2, 3))


class Wrapped(nn.Module):
    """As DistributedDataParallel and AveragedModel keep a model."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs):
        return self.module(*inputs)


@pytest.mark.parametrize("make", [OfInputs, OfImages])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model,
        Wrapped,
        lambda model: Wrapped(Wrapped(model)),
        torch.optim.swa_utils.AveragedModel,
        lambda model: torch.compile(model, backend="eager"),
        lambda model: Wrapped(torch.compile(model, backend="eager")),
    ],
    ids=["plain", "wrapped", "twice", "averaged", "compiled", "compiled and wrapped"],
)
def test_a_model_is_called_with_what_it_declares(make, wrap):
    model, inputs = wrap(make()), studies(MASKS["single"])
    assert takes_inputs(model) is (make is OfInputs)
    assert torch.equal(call_model(model, inputs), inputs.image.mean((1, 2, 3)))
