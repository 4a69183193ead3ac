"""Loaders that users bring: forms of batches and labels, and epochs as functions of (seed, epoch)."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

from configs.errors import DataError
from training.user_batches import Given, LabelForm, form_of, read_batch
from training.user_loader import RandomStream, UserLoader, first_batch
from utils.batch import Inputs

COUNT, BATCH, CLASSES = 10, 4, 3
NUMBERS = torch.tensor([0, 1, 2, -1, 0, -100, 2, 0, 1, 2])
IMAGES = torch.randn(COUNT, 1, 2, 2, generator=torch.Generator().manual_seed(0))
FORM = LabelForm("numbers", CLASSES)


class Drawing(Dataset):
    """Its images are drawn anew each time, by all three global generators."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index):
        drawn = random.random() + np.random.rand() + float(torch.rand(()))  # noqa: NPY002
        return torch.full((1, 2, 2), index + drawn), int(NUMBERS[index])


def images_of(loader: UserLoader, epoch: int, start: int = 0) -> list[torch.Tensor]:
    return [batch.inputs.image for _, batch in loader.epoch(epoch, start)]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other))


def shuffling(kind: str) -> DataLoader:
    generator = torch.Generator().manual_seed(5)
    return {
        "shuffle": lambda: DataLoader(Drawing(), BATCH, shuffle=True),
        "generator": lambda: DataLoader(Drawing(), BATCH, shuffle=True, generator=generator),
        "sampler": lambda: DataLoader(Drawing(), BATCH, sampler=RandomSampler(Drawing(), generator=generator)),
    }[kind]()


@pytest.mark.parametrize("kind", ["shuffle", "generator", "sampler"])
def test_an_epoch_is_a_function_of_its_number(kind):
    first, again = (UserLoader(shuffling(kind), "train_loader", FORM, 7) for _ in range(2))
    epochs = [images_of(first, epoch) for epoch in (0, 1)]
    torch.randn(3)
    assert not same(*epochs)
    assert same(images_of(again, 1), epochs[1]), "a new process begins in the second epoch"
    assert same(images_of(again, 1, start=1), epochs[1][1:]), "and in the middle of it"
    assert same(images_of(UserLoader(first.batches, "train_loader", FORM, 7), 1), epochs[1]), "and the same objects"
    assert not same(images_of(UserLoader(shuffling("shuffle"), "train_loader", FORM, 8), 1), epochs[1])


def test_nobody_else_sees_that_a_loader_draws():
    loader = UserLoader(shuffling("shuffle"), "train_loader", FORM, 7)
    torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002
    expected = [torch.rand(2).tolist(), random.random(), np.random.rand()]  # noqa: NPY002
    torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002
    first_batch(loader.batches, "train_loader", 7)
    images_of(loader, 0)
    assert [torch.rand(2).tolist(), random.random(), np.random.rand()] == expected  # noqa: NPY002


def test_samplers_are_told_the_epoch():
    class Sampler(RandomSampler):
        told = ()

        def set_epoch(self, epoch):
            self.told = (*self.told, epoch)

    sampler = Sampler(Drawing())
    loader = UserLoader(DataLoader(Drawing(), BATCH, sampler=sampler), "train_loader", FORM, 0)
    images_of(loader, 3), images_of(loader, 4)
    assert sampler.told == (3, 4)


def test_a_stream_goes_on_where_it_was_left():
    stream = RandomStream(1)
    with stream:
        first = torch.rand(2)
    torch.rand(5)
    with stream:
        second = torch.rand(2)
    assert torch.equal(torch.cat([first, second]), torch.rand(4, generator=torch.Generator().manual_seed(1)))


def test_a_loader_of_no_length_is_refused():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from TensorDataset(IMAGES, NUMBERS)

    with pytest.raises(DataError, match=r"no len\(\)"):
        len(UserLoader(DataLoader(Stream(), BATCH), "train_loader", FORM, 0))


# ---- forms


def given(label, mask=None, image=IMAGES) -> Given:
    return read_batch((image, label, mask), "batch 0")


@pytest.mark.parametrize("label", [NUMBERS, NUMBERS[:, None], NUMBERS.numpy(), NUMBERS.tolist(), NUMBERS.int()])
def test_class_numbers_become_columns(label):
    one = given(label)
    form = form_of(one, CLASSES, "batch 0")
    targets = form.targets(one, "batch 0")
    assert form == FORM
    known = [n >= 0 for n in NUMBERS.tolist()]
    assert targets.mask.tolist() == [[k] * CLASSES for k in known]
    assert targets.labels.argmax(1)[torch.tensor(known)].tolist() == [n for n in NUMBERS.tolist() if n >= 0]
    assert targets.labels.sum(1).tolist() == [float(k) for k in known]


def test_columns_with_unknown_ones():
    label = torch.tensor([[1.0, 0.0, float("nan")], [-1.0, 0.25, 1.0]])
    one = given(label, image=IMAGES[:2])
    targets = form_of(one, CLASSES, "batch 0").targets(one, "batch 0")
    assert targets.labels.tolist() == [[1, 0, 0], [0, 0.25, 1]]
    assert targets.mask.tolist() == [[True, True, False], [False, True, True]]
    mask = torch.tensor([[True, False, True], [True, True, True]])
    one = given(label, mask, IMAGES[:2])
    assert form_of(one, CLASSES, "batch 0").targets(one, "batch 0").mask.tolist()[0] == [True, False, False]


@pytest.mark.parametrize("keys", [("image", "label"), ("images", "targets"), ("pixel_values", "labels")])
def test_names_in_dicts(keys):
    one = read_batch({keys[0]: IMAGES, keys[1]: NUMBERS, "path": ["x"] * COUNT}, "batch 0")
    assert torch.equal(one.inputs.image, IMAGES) and torch.equal(one.label, NUMBERS)


def test_inputs_of_studies_are_taken_as_they_are():
    inputs = Inputs.of_images(IMAGES)
    assert read_batch((inputs, NUMBERS), "batch 0").inputs is inputs


def test_doubles_become_singles():
    assert given(NUMBERS, image=IMAGES.double()).inputs.image.dtype == torch.float32


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (IMAGES, "is Tensor"),
        ("text", "is str"),
        ((IMAGES,), "tuple of 1"),
        ({"image": IMAGES, "images": IMAGES, "label": NUMBERS}, "exactly one of 'image'"),
        ((IMAGES, NUMBERS[:3]), r"labels are \(3,\) int64, for 10 images"),
        ((IMAGES, ["a"] * COUNT), "labels are list"),
        ((IMAGES, NUMBERS, NUMBERS), "mask of known labels is"),
        ((IMAGES[:, 0, 0, 0], NUMBERS), "images are"),
    ],
)
def test_other_forms_are_refused(item, words):
    with pytest.raises(DataError, match=words):
        read_batch(item, "batch 0 of train_loader")


def test_later_batches_must_have_the_form_of_the_first():
    data = [(IMAGES[:2], NUMBERS[:2]), (IMAGES[:2], torch.zeros(2, 3))]
    with pytest.raises(DataError, match=r"batch 1 of train_loader: labels are \(2, 3\)"):
        list(UserLoader(data, "train_loader", FORM, 0).epoch(0))
