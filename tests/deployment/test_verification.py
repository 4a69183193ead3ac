"""Differences are found wherever they are, and small ones are told from large ones."""

import numpy as np
import pytest
import torch
from torch import nn

from configs.errors import ExportError
from deployment.verification import BOUNDS, check, compare, random_images
from tests.deployment.toys import IMAGE_SHAPE, Toy

IMAGES = random_images(IMAGE_SHAPE, 5)


def run_of(model: nn.Module, change=lambda y: y):
    """What a faithful file would give, each output changed."""

    def run(image: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            outputs = model(torch.from_numpy(image))
        return [change(y.numpy().copy()) for y in (outputs if isinstance(outputs, tuple) else (outputs,))]

    return run


@pytest.fixture
def model() -> Toy:
    return Toy().eval()


def test_the_same_network_differs_by_nothing(model):
    assert compare(model, run_of(model), IMAGES) == 0
    both = Toy(hierarchical=True).eval()
    assert compare(both, run_of(both), IMAGES) == 0


@pytest.mark.parametrize("row, column", [(0, 0), (2, 3)])
def test_one_wrong_number_is_found(model, row, column):
    def change(y: np.ndarray) -> np.ndarray:
        if len(y) > row:
            y[row, column] += 0.01
        return y

    assert compare(model, run_of(model, change), IMAGES) == pytest.approx(0.01, rel=1e-4)


def test_a_fault_of_one_batch_size_is_found(model):
    assert compare(model, run_of(model, lambda y: y + 0.5 * (len(y) == 1)), IMAGES) == pytest.approx(0.5, rel=1e-4)
    assert compare(model, run_of(model, lambda y: y + 0.5 * (len(y) == 3)), IMAGES) == pytest.approx(0.5, rel=1e-4)
    assert compare(model, run_of(model, lambda y: y + 0.5 * (len(y) == 1)), IMAGES, [3]) == 0


def test_every_image_is_run_in_every_size(model):
    seen: dict[int, list[np.ndarray]] = {}

    def run(image: np.ndarray) -> list[np.ndarray]:
        seen.setdefault(len(image), []).extend(image)
        return run_of(model)(image)

    compare(model, run, IMAGES, [1, 3, 4])
    for size, images in seen.items():
        assert len(images) % size == 0
        assert {p.tobytes() for p in images} == {p.tobytes() for p in IMAGES}


@pytest.mark.parametrize("change", [lambda y: y * np.nan, lambda y: y[:, :-1], lambda y: y[..., None]])
def test_not_finite_or_of_another_shape_is_infinitely_far(model, change):
    assert compare(model, run_of(model, change), IMAGES) == np.inf


def test_large_logits_are_compared_relatively(model):
    with torch.no_grad():
        model.fine.bias += 1000
    assert compare(model, run_of(model, lambda y: y * 1.001), IMAGES) == pytest.approx(1e-3, rel=1e-2)


def test_bounds_are_kept(model):
    for precision, bound in BOUNDS.items():
        assert check(model, run_of(model, lambda y, b=bound: y + 0.9 * b), IMAGES, precision, [1]) < bound
        with pytest.raises(ExportError, match=rf"does not compute what the network does.*{precision}"):
            check(model, run_of(model, lambda y, b=bound: y + 1.1 * b), IMAGES, precision, [1])


def test_a_file_that_does_not_run_is_an_export_error(model):
    def run(image: np.ndarray):
        raise RuntimeError("no kernel\nfor this")

    with pytest.raises(ExportError, match=r"does not run \(RuntimeError: no kernel for this\)"):
        check(model, run, IMAGES, "fp32", [1])
    with pytest.raises(ExportError, match="does not run"):
        check(model, lambda image: [], IMAGES, "fp32", [1])


def test_nothing_to_compare_is_our_own_error(model):
    with pytest.raises(ValueError, match="no images"):
        compare(model, run_of(model), IMAGES[:0])
