"""Mixed batches against slow loops in float64: images, labels, masks, coarse classes; and cut batches."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from data.loading.mixing import Mixing, cut_box
from tests.training.toys import batch_of
from training.losses import TrainingLoss, binary_cross_entropy, cross_entropy, focal
from utils.batch import Logits, Targets
from utils.mixing import Mix

SPATIAL = [(6, 9), (4, 5, 6)]


def images(spatial, studies=5) -> torch.Tensor:
    return torch.randn(studies, 2, *spatial, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def labels(studies=5, columns=3) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(1)
    return torch.from_numpy(rng.random((studies, columns)).round()), torch.from_numpy(
        rng.random((studies, columns)) < 0.7
    )


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("mixing", [Mixing(3, mixup=0.8), Mixing(3, cutmix=1.0)], ids=["mixup", "cutmix"])
def test_images_and_labels_against_a_slow_loop(mixing, spatial):
    image, (target, mask) = images(spatial), labels()
    for number in range(8):
        mix = mixing.draw(2, number, 5, spatial)
        if mix is None:
            continue
        mixed, targets = mix.images(image), mix.targets(Targets(target, mask))
        for study in range(5):
            partner, own = int(mix.partner[study]), 0
            for pixel in np.ndindex(*spatial):
                where = (slice(None), *pixel)
                inside = mix.box is not None and all(a <= p < b for p, (a, b) in zip(pixel, mix.box))
                share = mix.share if mix.box is None else 1.0 - inside
                own += not inside
                expected = share * image[study][where] + (1 - share) * image[partner][where]
                assert torch.allclose(mixed[study][where], expected, rtol=0, atol=1e-12)
            if mix.box is not None:
                assert mix.share == pytest.approx(own / math.prod(spatial), abs=1e-12)
            for k in range(target.shape[1]):
                known = bool(mask[study, k] and mask[partner, k])
                assert bool(targets.mask[study, k]) is known
                expected = mix.share * target[study, k] + (1 - mix.share) * target[partner, k] if known else 0.0
                assert float(targets.labels[study, k]) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)])
def test_the_loss_of_a_mixed_label_is_the_mixed_loss_of_both(smoothing, weight):
    """λ ℓ(z, a) + (1 − λ) ℓ(z, b) over the labels that are known of both, with weights and smoothing; in float64."""
    target, mask = labels()
    logits = torch.randn(5, 3, dtype=torch.float64)
    mix = Mix(torch.tensor([1, 0, 3, 4, 2]), 0.3)
    mixed = mix.targets(Targets(target, mask))
    loss = TrainingLoss(lambda z, t: binary_cross_entropy(z.double(), t, weight), label_smoothing=smoothing)
    total, count = 0.0, 0
    for study in range(5):
        partner = int(mix.partner[study])
        for k in range(3):
            if mask[study, k] and mask[partner, k]:
                count += 1
                for share, row in ((0.3, study), (0.7, partner)):
                    smooth = float(target[row, k]) * (1 - smoothing) + smoothing / 2
                    p, w = (
                        1 / (1 + math.exp(-float(logits[study, k].float()))),
                        1.0 if weight is None else float(weight[k]),
                    )
                    total -= share * (w * smooth * math.log(p) + (1 - smooth) * math.log(1 - p))
    assert loss.counts(mixed) == {"labels": count} and 0 < count < 15
    assert float(loss.sums(Logits(None, logits), mixed)["labels"]) == pytest.approx(total, rel=1e-6)


def test_exclusive_classes_stay_a_distribution_and_focal_takes_mixed_ones():
    target = torch.eye(4)[[0, 1, 2, 3, 0]]
    mixed = Mixing(0, mixup=1.0).draw(0, 0, 5, (4, 4)).targets(Targets(target, torch.ones(5, 4, dtype=torch.bool)))
    assert torch.allclose(mixed.labels.sum(1), torch.ones(5))
    assert cross_entropy(torch.randn(5, 4), mixed.labels).isfinite().all()
    assert focal(torch.randn(5, 4), mixed.labels).isfinite().all()


def test_coarse_classes_are_mixed_alike():
    target, mask = labels()
    coarse, coarse_mask = labels(columns=2)
    mix = Mix(torch.tensor([4, 3, 2, 1, 0]), 0.25)
    mixed = mix.targets(Targets(target, mask, coarse, coarse_mask))
    alone = mix.targets(Targets(coarse, coarse_mask))
    assert torch.equal(mixed.coarse, alone.labels) and torch.equal(mixed.coarse_mask, alone.mask)


def test_a_draw_is_a_function_of_seed_epoch_and_batch():
    mixing = Mixing(5, mixup=0.4, cutmix=1.0, probability=0.7)
    first = [mixing.draw(1, number, 6, (8, 8)) for number in range(60)]
    again = [Mixing(5, 0.4, 1.0, 0.7).draw(1, number, 6, (8, 8)) for number in range(60)]
    for one, other in zip(first, again):
        assert (one is None) is (other is None)
        assert one is None or (torch.equal(one.partner, other.partner) and one[1:] == other[1:])
    kinds = ["none" if one is None else "cut" if one.box else "up" for one in first]
    assert {kind: kinds.count(kind) > 8 for kind in ("none", "cut", "up")} == {"none": True, "cut": True, "up": True}
    others = [Mixing(6, 0.4, 1.0, 0.7).draw(1, number, 6, (8, 8)) for number in range(60)]
    assert any((one is None) is not (other is None) for one, other in zip(first, others))
    assert mixing.draw(1, 3, 1, (8, 8)) is None  # nobody to be mixed with


def test_a_box_lies_within_and_has_the_share_in_the_middle():
    assert cut_box(0.75, [0.5, 0.5], (8, 8)) == ((2, 6), (2, 6))
    for where in np.random.default_rng(0).random((50, 2)):
        assert all(0 <= a <= b <= 8 for a, b in cut_box(0.3, where.tolist(), (8, 8)))


@pytest.mark.parametrize("last", [torch.contiguous_format, torch.channels_last])
def test_a_batch_is_mixed_once_whole_and_however_it_is_cut(last):
    image, (target, mask) = images((4, 4)).float(), labels()
    mix = Mix(torch.tensor([4, 0, 1, 2, 3]), 0.6, ((1, 3), (0, 2)))
    plain = batch_of(image, target.float(), mask)
    batch = dataclasses.replace(plain, targets=mix.targets(plain.targets), mix=mix)
    whole = batch.to(torch.device("cpu"), last)
    assert whole.mix is None and whole.inputs.image.is_contiguous(memory_format=last)
    assert torch.equal(whole.inputs.image, mix.images(image)) and torch.equal(image, images((4, 4)).float())
    for parts in (whole.split(3), batch.split(3), [part.to(torch.device("cpu")) for part in batch.split(3)]):
        assert torch.equal(torch.cat([part.inputs.image for part in parts]), whole.inputs.image)
        assert torch.equal(torch.cat([part.targets.labels for part in parts]), batch.targets.labels)
