"""The Predictor: what a hand loop gives, whatever the batch, the order and the memory there is."""

import numpy as np
import pytest
import torch
from torch import nn

from configs.default_config import Config
from configs.errors import PredictionError
from inference.predictor import Predictor
from inference.tta import IMAGE_TRANSFORMS, VOLUME_TRANSFORMS, show
from models import HybridMedNet
from tests.training.toys import TensorLoader, random_data
from training.evaluation import Evaluator
from training.losses import TrainingLoss, binary_cross_entropy
from training.precision import Precision
from utils.batch import Inputs

FLOAT32 = Precision("cpu", None)
# Matrix products of other sizes are added up in another order.
TOLERANCE = 2e-5


def network(*settings: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    small = ["MODEL.pretrained=false", "MODEL.fpn_channels=8", "MODEL.fusion_channels=8", "MODEL.num_classes=4"]
    config = Config.from_overrides(["MODEL.backbone=timm/test_resnet", "DATA.image_size=32", *small, *settings])
    return HybridMedNet(config).eval()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return network()


def images(count: int, *shape: int) -> torch.Tensor:
    return torch.randn(count, *(shape or (3, 32, 32)), generator=torch.Generator().manual_seed(1))


def test_logits_are_the_models_own_in_float64(model):
    x = images(5)
    (logits,) = Predictor([model], FLOAT32).logits(Inputs.of_images(x))
    with torch.no_grad():
        assert logits.dtype == torch.float64 and torch.equal(logits, model(x).double())


@pytest.mark.parametrize(
    ("settings", "shape", "transforms"),
    [
        ((), (3, 32, 32), IMAGE_TRANSFORMS),
        (("MODEL.backbone=convnext3d_tiny", "DATA.image_size=[8,16,16]"), (3, 8, 16, 16), VOLUME_TRANSFORMS),
    ],
)
def test_test_time_transforms_are_averaged_as_by_hand(settings, shape, transforms):
    model, x = network(*settings), images(2, *shape)
    (logits,) = Predictor([model], FLOAT32, tta=True).logits(Inputs.of_images(x))
    with torch.no_grad():
        by_hand = sum(model(show(x, transform)).double() for transform in transforms) / len(transforms)
        np.testing.assert_allclose(logits, by_hand, atol=1e-12)
        assert (logits - model(x).double()).abs().max() > 1e-4


@pytest.mark.parametrize("tta", [False, True])
def test_an_image_does_not_care_about_its_batch(model, tta):
    x = images(7)
    predictor = Predictor([model], FLOAT32, tta=tta)
    (together,) = predictor.logits(Inputs.of_images(x))
    alone = torch.cat([predictor.logits(Inputs.of_images(one[None]))[0] for one in x])
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    (shuffled,) = predictor.logits(Inputs.of_images(x[order]))
    differences = [(alone - together).abs().max(), (shuffled - together[order]).abs().max()]
    print(f"tta {tta}: alone {differences[0]:.1e}, in another order {differences[1]:.1e}")
    assert max(differences) < TOLERANCE
    assert torch.equal(together, predictor.logits(Inputs.of_images(x))[0])  # and twice the same


def test_members_are_asked_one_by_one(model):
    other, x = network(seed=1), images(3)
    logits = Predictor([model, other], FLOAT32).logits(Inputs.of_images(x))
    for got, member in zip(logits, (model, other)):
        assert torch.equal(got, Predictor([member], FLOAT32).logits(Inputs.of_images(x))[0])


def test_the_fine_logits_of_hierarchical_models():
    model, x = network("MODEL.hierarchical=true", "MODEL.num_coarse_classes=2"), images(2)
    (logits,) = Predictor([model], FLOAT32).logits(Inputs.of_images(x))
    with torch.no_grad():
        assert torch.equal(logits, model(x)[1].double())


def test_channels_last_is_the_same_but_for_rounding(model):
    x = images(3)
    (plain,) = Predictor([model], FLOAT32, tta=True).logits(Inputs.of_images(x))
    (last,) = Predictor([model], FLOAT32, torch.channels_last, tta=True).logits(Inputs.of_images(x))
    np.testing.assert_allclose(plain, last, atol=TOLERANCE)


def test_models_are_put_into_eval_mode_and_no_random_number_is_drawn(model):
    model.train()
    before = torch.get_rng_state()
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    Predictor([model], FLOAT32, tta=True).logits(Inputs.of_images(images(2)))
    assert not model.training and torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in model.named_buffers())


# ---- over a loader


def test_over_a_loader_is_what_the_evaluator_scores():
    images, target, mask = random_data(23)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), target.shape[1]))
    names = tuple("abcdefgh"[: target.shape[1]])
    evaluator = Evaluator(model, TrainingLoss(binary_cross_entropy), FLOAT32, names)
    predictions = evaluator(TensorLoader(images, target, mask, 5), "test")
    logits, index = Predictor([model], FLOAT32).over(TensorLoader(images, target, mask, 5), "test")
    assert logits.shape == (1, 23, target.shape[1]) and logits.dtype == np.float64 and index.tolist() == list(range(23))
    np.testing.assert_allclose(1 / (1 + np.exp(-logits[0])), predictions.scores, atol=1e-15)


class Unreadable:
    """A loader none of whose images can be read."""

    def __len__(self) -> int:
        return 2

    def epoch(self, epoch: int):
        yield from ((0, None), (1, None))


class NotANumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :2] * float("nan")


def test_nan_and_nothing_are_errors():
    images, target, mask = random_data(6)
    with pytest.raises(PredictionError, match="val: a model gives NaN or infinity for 6 images"):
        Predictor([NotANumber()], FLOAT32).over(TensorLoader(images, target, mask, 4), "val")
    with pytest.raises(PredictionError, match="not one image"):
        Predictor([NotANumber()], FLOAT32).over(Unreadable(), "val")
    with pytest.raises(ValueError, match="at least one model"):
        Predictor([], FLOAT32)


# ---- memory


class Narrow(nn.Module):
    """Fits `most` images."""

    def __init__(self, model: nn.Module, most: int) -> None:
        super().__init__()
        self.model, self.most, self.sizes = model, most, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return self.model(x)


def test_batches_are_halved_until_they_fit(model, caplog):
    x, narrow = images(8), Narrow(model, 2)
    predictor = Predictor([narrow], FLOAT32)
    (logits,) = predictor.logits(Inputs.of_images(x))
    assert narrow.sizes == [8, 4, 2, 2, 2, 2]
    np.testing.assert_allclose(logits, Predictor([model], FLOAT32).logits(Inputs.of_images(x))[0], atol=TOLERANCE)
    assert [record.getMessage()[-13:] for record in caplog.records] == ["8 images -> 4", "4 images -> 2"]
    narrow.sizes.clear()
    predictor.logits(Inputs.of_images(x))
    assert narrow.sizes == [2] * 4  # it is remembered
    assert len(predictor.logits(Inputs.of_images(x[:1]))[0]) == 1


def test_one_image_that_does_not_fit_is_an_error(model):
    with pytest.raises(PredictionError, match="out of memory with one image"):
        Predictor([Narrow(model, 0)], FLOAT32).logits(Inputs.of_images(images(3)))


def test_other_failures_are_not_taken_for_a_lack_of_memory(model):
    with pytest.raises(RuntimeError, match="expected input"):
        Predictor([model], FLOAT32).logits(Inputs.of_images(images(2, 5, 32, 32)))
