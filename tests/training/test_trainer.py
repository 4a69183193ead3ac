"""The training loop: exact windows, harmless skips, honest evaluation, and resumes that change no bit."""

import copy
import math
import signal
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import nn

from configs.errors import ConfigError, TrainingError
from data.loaders import BadPictures, Batch, EpochBatches, Labels, PictureDataset, PictureLoader
from data.picture_files import FileReader
from data.sample import Catalogue, Sample
from data.transforms import LightAugmentation, Preprocess
from training.ema import ExponentialMovingAverage
from training.losses import GroupSpec, TrainingLoss, binary_cross_entropy
from training.optim import LearningRateSchedule, create_optimizer
from training.precision import Precision, choose_precision
from training.trainer import Trainer, TrainerOptions
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.interrupt import Interrupted

CLASSES, SIDE = 3, 8


class TensorLoader:
    """A loader over tensors, in their order; bad: numbers of batches none of whose pictures can be read."""

    def __init__(self, images, target, mask, batch_size: int, bad: tuple[int, ...] = ()) -> None:
        self.tensors, self.batch_size, self.bad = (images, target, mask, torch.arange(len(images))), batch_size, bad

    def __len__(self) -> int:
        return -(-len(self.tensors[0]) // self.batch_size)

    def names(self, index) -> list[str]:
        return [f"film_{i}.png" for i in index.tolist()]

    def epoch(self, epoch: int, start: int = 0):
        parts = list(zip(*(tensor.split(self.batch_size) for tensor in self.tensors)))
        for number in range(start, len(parts)):
            yield number, None if number in self.bad else Batch(*parts[number])


def random_data(count: int, seed: int = 0, known: float = 0.6):
    """Pictures, targets that a network can learn, and masks spread unevenly."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, SIDE, SIDE, generator=generator)
    target = (images.mean((2, 3)) + 0.1 * torch.randn(count, CLASSES, generator=generator) > 0).float()
    mask = torch.rand(count, CLASSES, generator=generator) < known
    return images, target, mask


def plain_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 16), nn.Tanh(), nn.Linear(16, CLASSES))


def full_model(seed: int = 0) -> nn.Module:
    """With all that makes training depend on more than weights: BatchNorm and dropout."""
    torch.manual_seed(seed)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(144, CLASSES)
    return nn.Sequential(*layers)


def make_trainer(
    model: nn.Module, kind="adamw", rate=1e-2, schedule="constant", steps=10, ema=0.0, **options
) -> Trainer:
    optimizer = create_optimizer(model, kind, rate, options.pop("weight_decay", 0.05))
    precision = options.pop("precision", Precision("cpu", None))
    loss = options.pop("loss", TrainingLoss(binary_cross_entropy))
    return Trainer(
        model,
        loss,
        optimizer,
        LearningRateSchedule(optimizer, schedule, rate, steps, warmup_steps=options.pop("warmup", 0)),
        precision,
        TrainerOptions(**{"epochs": 1, "print_freq": 1, **options}),
        tuple("abc"[:CLASSES]),
        ExponentialMovingAverage(model, ema) if ema else None,
    )


def snapshot(trainer: Trainer) -> dict:
    """All that a checkpoint holds, copied."""
    return copy.deepcopy({key: value for key, value in trainer.state_dict().items() if key != "random"})


def differences(one, other, path: str = "") -> list[str]:
    """Where two nested states differ; tensors are compared bit by bit, NaN equal to NaN, times left out."""
    if path.endswith(".seconds"):
        return []
    if isinstance(one, dict) and isinstance(other, dict):
        keys = one.keys() | other.keys()
        return [d for key in keys for d in differences(one.get(key), other.get(key), f"{path}.{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [d for i, pair in enumerate(zip(one, other)) for d in differences(*pair, f"{path}.{i}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if one.numpy().tobytes() == other.numpy().tobytes() else [path]
    both_nan = isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)
    return [] if both_nan or one == other else [path]


def max_difference(one: nn.Module, other: nn.Module) -> float:
    return max(float((p - q).detach().abs().max()) for p, q in zip(one.parameters(), other.parameters()))


# ---- one optimizer step


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize(("count", "pieces", "window"), [(8, 2, 4), (10, 2, 4), (24, 2, 4), (26, 1, 8), (16, 3, 3)])
def test_accumulation_equals_one_large_batch(kind, count, pieces, window):
    images, target, mask = random_data(count)
    mask[: 2 * pieces] = torch.eye(CLASSES, dtype=torch.bool)[torch.arange(2 * pieces) % CLASSES]
    mask[pieces : 2 * pieces] = False  # a micro-batch of which nothing is known
    small = make_trainer(plain_model(), kind, accumulation_steps=window)
    large = make_trainer(plain_model(), kind)
    for _ in range(3):
        small.train_epoch(TensorLoader(images, target, mask, pieces))
        large.train_epoch(TensorLoader(images, target, mask, pieces * window))
        small.state.sums.batches = large.state.sums.batches = 0
    assert small.state.global_step == large.state.global_step == 3 * math.ceil(count / (pieces * window))
    assert max_difference(small.model, plain_model()) > 1e-3
    assert max_difference(small.model, large.model) < 1e-6
    assert small.state.sums.loss == pytest.approx(large.state.sums.loss, rel=1e-6)


def test_accumulation_of_a_hierarchical_loss():
    class Hierarchical(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fine = plain_model()
            self.coarse = nn.Linear(CLASSES, 2)

        def forward(self, x):
            fine = self.fine(x)
            return self.coarse(fine), fine

    class CoarseLoader(TensorLoader):
        def epoch(self, epoch, start=0):
            for number, batch in super().epoch(epoch, start):
                batch.coarse_target, batch.coarse_mask = batch.target[:, :2], batch.mask[:, 1:]
                yield number, batch

    groups = [GroupSpec([0, 1]), GroupSpec([0, 1, 2], negated=True)]
    weights = {"fine": 0.6, "coarse": 0.4, "consistency": 0.2}
    loss = TrainingLoss(binary_cross_entropy, weights, groups=groups)
    trainers = []
    for pieces, window in ((2, 4), (8, 1)):
        trainer = make_trainer(Hierarchical(), loss=loss, accumulation_steps=window)
        torch.manual_seed(0)
        nn.init.normal_(trainer.model.coarse.weight)
        nn.init.zeros_(trainer.model.coarse.bias)
        trainer.train_epoch(CoarseLoader(*random_data(10), pieces))
        trainers.append(trainer)
    assert max_difference(trainers[0].model, trainers[1].model) < 1e-6


@pytest.mark.parametrize("clip", [0.05, None, 100.0])
def test_one_step_by_hand_in_float64(clip):
    images, target, mask = random_data(6)
    model, rate, decay = plain_model(), 0.02, 0.1
    slow = copy.deepcopy(model).double()
    loss = F.binary_cross_entropy_with_logits(slow(images.double()), target.double(), reduction="none")[mask].mean()
    loss.backward()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in slow.parameters()))
    assert 0.05 < norm < 100
    factor = min(1.0, clip / norm) if clip else 1.0
    figures = {}
    trainer = make_trainer(model, rate=rate, weight_decay=decay, clip_norm=clip, accumulation_steps=3)
    trainer.on_step = lambda step, values: figures.update(values)
    trainer.train_epoch(TensorLoader(images, target, mask, 2))
    with torch.no_grad():
        for p, q in zip(model.parameters(), slow.parameters()):
            g = factor * q.grad  # of the first AdamW step both bias-corrected moments are g and g²
            expected = q * (1 - rate * (decay if q.ndim > 1 else 0)) - rate * g / (g.abs() + 1e-8)
            torch.testing.assert_close(p.double(), expected, rtol=0, atol=1e-6)
    assert figures["train/loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert figures["train/gradient_norm"] == pytest.approx(norm, rel=1e-5)
    assert figures["train/learning_rate"] == rate and trainer.state.sums.pictures == 6


def test_clipping_scales_an_sgd_step():
    images, target, mask = random_data(6)
    start, moved = nn.utils.parameters_to_vector(plain_model().parameters()), []
    for clip in (0.05, None):
        model = plain_model()
        make_trainer(model, "sgd", weight_decay=0.0, clip_norm=clip).train_epoch(TensorLoader(images, target, mask, 6))
        moved.append(float((nn.utils.parameters_to_vector(model.parameters()) - start).detach().norm()))
    assert moved[0] == pytest.approx(1e-2 * 1.9 * 0.05, rel=1e-3)  # Nesterov's first step is (1 + momentum) g
    assert moved[1] > 2 * moved[0]


# ---- steps that are not finite, or empty


@pytest.mark.parametrize("position", [0, 1, 3])
@pytest.mark.parametrize("filler", [math.nan, math.inf])
def test_a_nan_picture_skips_the_whole_window_and_changes_nothing(position, filler, caplog):
    images, target, mask = random_data(16, known=1.0)
    trainer = make_trainer(full_model(), schedule="cosine", ema=0.9, accumulation_steps=4)
    trainer.train_epoch(TensorLoader(images[:8], target[:8], mask[:8], 2))
    trainer.model.train()
    before, buffers = snapshot(trainer), copy.deepcopy(dict(trainer.model.named_buffers()))
    window = [batch for _, batch in TensorLoader(images, target, mask, 2).epoch(0)][4:]
    window[position].image = window[position].image.clone()
    window[position].image[1, 0, 3, 3] = filler
    names = TensorLoader(images, target, mask, 2).names
    assert trainer.train_step(window, names) is False
    after = snapshot(trainer)
    assert after["progress"]["sums"].pop("skipped") == 1 and after["progress"].pop("nonfinite_in_a_row") == 1
    before["progress"]["sums"].pop("skipped"), before["progress"].pop("nonfinite_in_a_row")
    assert differences(before, after) == []
    assert {name for name in buffers if "running" in name or "batches" in name}
    assert differences(buffers, dict(trainer.model.named_buffers())) == []
    assert "skipped a step" in caplog.text
    window[position].image = torch.zeros_like(window[position].image)
    assert trainer.train_step(window, names) is True
    assert trainer.state.nonfinite_in_a_row == 0 and trainer.state.sums.skipped == 1
    assert trainer.state.global_step == 2 and trainer.schedule.step_number == 2 and trainer.ema.updates == 2


def test_a_skip_leaves_no_gradient_behind():
    images, target, mask = random_data(8, known=1.0)
    bad = images.clone()
    bad[5] = math.nan
    with_skip, without = make_trainer(plain_model(), "sgd"), make_trainer(plain_model(), "sgd")
    with_skip.train_epoch(TensorLoader(bad, target, mask, 4))
    without.train_epoch(TensorLoader(images[:4], target[:4], mask[:4], 4))
    assert max_difference(with_skip.model, without.model) == 0.0


def test_repeated_nonfinite_steps_stop_the_run():
    images, target, mask = random_data(20, known=1.0)
    images[8:] = math.nan
    trainer = make_trainer(full_model(), max_nonfinite_steps=3)
    with pytest.raises(TrainingError) as error:
        trainer.train_epoch(TensorLoader(images, target, mask, 2))
    message = str(error.value)
    assert "3 steps in a row" in message and "epoch 1, step 4" in message
    assert "film_12.png, film_13.png" in message and "film_11.png" not in message
    assert trainer.state.sums.skipped == 3 and all(p.isfinite().all() for p in trainer.model.parameters())


def test_nonfinite_steps_that_are_not_in_a_row_do_not_stop_it():
    images, target, mask = random_data(20, known=1.0)
    images[[2, 6, 8, 14, 16]] = math.nan
    trainer = make_trainer(plain_model(), max_nonfinite_steps=3)
    trainer.train_epoch(TensorLoader(images, target, mask, 2))
    assert trainer.state.sums.skipped == 5 and trainer.state.global_step == 5


def test_fp16_finds_its_scale_without_counting_against_the_run():
    images, target, mask = random_data(16, known=1.0)
    trainer = make_trainer(plain_model(), precision=Precision("cpu", torch.float16), max_nonfinite_steps=1)
    reference = make_trainer(plain_model())
    with torch.no_grad():
        for model in (trainer.model, reference.model):
            model[3].weight.mul_(30)  # 2^16 times these gradients is beyond fp16
    before = snapshot(trainer)["model"]
    window = [batch for _, batch in TensorLoader(images, target, mask, 16).epoch(0)]
    skipped = 0
    while not trainer.train_step(window):
        skipped += 1
        assert differences(before, trainer.model.state_dict()) == [] and trainer.scaler.get_scale() == 2.0 ** (
            16 - skipped
        )
    assert 0 < skipped == trainer.state.sums.skipped < 10
    assert trainer.state.nonfinite_in_a_row == 0 and trainer.state.global_step == 1
    assert reference.train_step(window) and max_difference(trainer.model, reference.model) < 0.021


def test_a_window_without_labels_is_passed_over():
    images, target, mask = random_data(12, known=1.0)
    mask[4:8] = False
    trainer = make_trainer(full_model(), schedule="cosine", ema=0.9, accumulation_steps=2)
    loader = TensorLoader(images, target, mask, 2)
    batches = [batch for _, batch in loader.epoch(0)]
    trainer.model.train()
    trainer.train_step(batches[:2])
    before = snapshot(trainer)
    assert trainer.train_step(batches[2:4]) is False
    assert trainer.train_step([]) is False
    assert differences(before, snapshot(trainer)) == []
    assert trainer.train_step(batches[4:]) is True


def test_unreadable_batches_count_in_the_window_but_train_nothing():
    images, target, mask = random_data(12)
    trainer = make_trainer(plain_model(), accumulation_steps=2)
    trainer.train_epoch(TensorLoader(images, target, mask, 2, bad=(1, 2, 3)))
    assert trainer.state.global_step == 2 and trainer.state.sums.batches == 6 and trainer.state.sums.pictures == 6
    other = make_trainer(plain_model())
    for rows in (slice(0, 2), slice(8, 12)):
        other.model.train()
        other.train_step([Batch(images[rows], target[rows], mask[rows], torch.arange(len(images[rows])))])
    assert max_difference(trainer.model, other.model) < 1e-6


# ---- evaluation


def loader_with_scores(count: int = 40, seed: int = 7) -> TensorLoader:
    images, target, mask = random_data(count, seed, known=0.8)
    target[:, 2] = 0  # a class without positives
    target[~mask] = -1
    return TensorLoader(images, target, mask, 8)


def test_metrics_and_loss_of_an_evaluation():
    model, loader = full_model(), loader_with_scores()
    images, target, mask, _ = loader.tensors
    predictions = make_trainer(model).evaluate(loader, "validation")
    with torch.no_grad():
        logits = copy.deepcopy(model).eval()(images).double()
    np.testing.assert_allclose(predictions.scores, 1 / (1 + np.exp(-logits.numpy())), rtol=1e-6)
    assert predictions.scores.dtype == np.float64 and (predictions.index == np.arange(40)).all()
    expected = [roc_auc_score(target[mask[:, k], k], predictions.scores[mask[:, k], k]) for k in (0, 1)]
    assert predictions.metrics.mean_auroc == pytest.approx(sum(expected) / 2, abs=1e-12)
    assert predictions.metrics.defined_classes == 2
    by_torch = F.binary_cross_entropy_with_logits(logits[mask], target.double()[mask])
    assert predictions.loss == pytest.approx(float(by_torch), rel=1e-6)


def test_evaluation_of_exclusive_classes_is_a_softmax():
    images, target, _ = random_data(12)
    target = torch.eye(CLASSES)[target.sum(1).long() % CLASSES]
    model = plain_model()
    trainer = make_trainer(model, loss=TrainingLoss(binary_cross_entropy, exclusive=True))
    scores = trainer.evaluate(TensorLoader(images, target, torch.ones_like(target).bool(), 5), "val").scores
    with torch.no_grad():
        np.testing.assert_allclose(scores, model(images).double().softmax(1).numpy(), rtol=1e-6)


def test_evaluation_uses_the_averaged_weights_and_leaves_the_models_own():
    images, target, mask = random_data(16)
    trainer = make_trainer(full_model(), ema=0.99, rate=0.1)
    trainer.train_epoch(TensorLoader(images, target, mask, 4))
    before, loader = copy.deepcopy(trainer.model.state_dict()), loader_with_scores()
    averaged = copy.deepcopy(trainer.model)
    averaged.load_state_dict(trainer.ema.shadow)
    scores = {}
    for name, model in (("averaged", averaged), ("own", trainer.model)):
        with torch.no_grad():
            scores[name] = copy.deepcopy(model).eval()(loader.tensors[0]).double().sigmoid().numpy()
    result = trainer.evaluate(loader, "val").scores
    np.testing.assert_allclose(result, scores["averaged"], rtol=1e-6)
    assert np.abs(result - scores["own"]).max() > 1e-3
    assert differences(before, trainer.model.state_dict()) == []


def test_evaluation_without_pictures_or_with_nan_scores_says_so():
    images, target, mask = random_data(8)
    trainer = make_trainer(plain_model())
    with pytest.raises(TrainingError, match="val: not one picture"):
        trainer.evaluate(TensorLoader(images, target, mask, 8, bad=(0,)), "val")
    images[[2, 5]] = math.nan
    with pytest.raises(TrainingError, match="NaN for 2 pictures"):
        trainer.evaluate(TensorLoader(images, target, mask, 3), "val")


# ---- epochs


def fit(trainer: Trainer, train_loader, val_loader) -> list[dict]:
    records: list[dict] = []
    trainer.on_epoch = lambda _, record, is_best: records.append({**record, "is_best": is_best})
    trainer.fit(train_loader, val_loader)
    return records


def test_best_epoch_is_that_of_the_highest_mean_over_defined_classes():
    train, val = TensorLoader(*random_data(40), 8), loader_with_scores(60)
    trainer = make_trainer(full_model(), rate=0.05, epochs=8)
    scores = []

    def note(trainer: Trainer, record: dict, is_best: bool) -> None:
        with torch.no_grad():
            images, target, mask, _ = val.tensors
            p = copy.deepcopy(trainer.model).eval()(images).double()
        mean = sum(roc_auc_score(target[mask[:, k], k], p[mask[:, k], k]) for k in (0, 1)) / 2
        assert record["mean_auroc"] == pytest.approx(mean, abs=1e-9) and record["defined_classes"] == 2
        assert is_best is (not scores or mean > max(scores))
        scores.append(mean)

    trainer.on_epoch = note
    trainer.fit(train, val)
    assert len(scores) == 8 and len(set(scores)) > 2
    assert trainer.state.best_epoch == int(np.argmax(scores)) and trainer.state.best_score == max(scores)


def test_without_a_defined_class_the_loss_decides():
    images, target, mask = random_data(16)
    trainer = make_trainer(plain_model(), epochs=3)
    records = fit(trainer, TensorLoader(images, target, mask, 8), TensorLoader(images, 0 * target, mask, 8))
    assert all(record["mean_auroc"] is None for record in records)
    assert trainer.state.best_score == -min(record["val_loss"] for record in records)


@pytest.mark.parametrize("patience", [1, 3])
def test_early_stopping(patience, caplog):
    caplog.set_level("INFO")
    data = random_data(16)
    trainer = make_trainer(plain_model(), "sgd", rate=0.0, epochs=9, early_stopping_patience=patience)
    records = fit(trainer, TensorLoader(*data, 8), TensorLoader(*data, 8))
    assert [record["is_best"] for record in records] == [True] + [False] * patience
    assert "stopped early" in caplog.text
    assert fit(trainer, TensorLoader(*data, 8), TensorLoader(*data, 8)) == [], "a resumed run must not go on either"
    patient = make_trainer(plain_model(), "sgd", rate=0.0, epochs=5)
    assert len(fit(patient, TensorLoader(*data, 8), TensorLoader(*data, 8))) == 5


def test_an_epochs_record():
    images, target, mask = random_data(16, known=1.0)
    images[9] = math.nan
    trainer = make_trainer(plain_model(), epochs=2, schedule="cosine", steps=8)
    losses = []
    trainer.on_step = lambda step, figures: losses.append(figures["train/loss"])
    records = fit(trainer, TensorLoader(images, target, mask, 4), TensorLoader(*random_data(16), 8))
    assert [(r["epoch"], r["step"], r["skipped_steps"]) for r in records] == [(1, 3, 1), (2, 6, 1)]
    assert [r["train_loss"] for r in records] == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3])
    rates = [1e-2 * (1 + math.cos(math.pi * step / 8)) / 2 for step in (3, 6)]
    assert [r["learning_rate"] for r in records] == pytest.approx(rates)


def test_bfloat16_trains_like_float32():
    try:
        precision = choose_precision("bf16", torch.device("cpu"))
    except ConfigError as error:
        pytest.skip(str(error))
    data, results = random_data(32), []
    for chosen in (Precision("cpu", None), precision):
        trainer = make_trainer(plain_model(), "sgd", rate=0.5, precision=chosen, epochs=3, accumulation_steps=2)
        results.append(fit(trainer, TensorLoader(*data, 8), TensorLoader(*data, 8))[-1]["val_loss"])
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert results[0] != results[1] and results[1] == pytest.approx(results[0], rel=0.02)
    assert results[0] < 0.9 * make_trainer(plain_model()).evaluate(TensorLoader(*data, 8), "val").loss


# ---- interruption and resume

RESUME_EPOCHS, RESUME_STEPS = 3, 4  # 14 pictures in batches of 2, windows of 2, the last one short


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("films")
    for index in range(20):
        pixels = np.random.default_rng(index).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
        assert cv2.imwrite(str(root / f"{index:02d}.png"), pixels)
    return root


def make_loaders(root: Path) -> tuple[PictureLoader, PictureLoader]:
    """14 augmented training pictures, and 6 to validate on."""
    names = tuple(f"{index:02d}.png" for index in range(20))
    rng = np.random.default_rng(1)
    target, mask = (rng.random((20, CLASSES)) < 0.5).astype(np.float32), rng.random((20, CLASSES)) < 0.9
    target[14:], mask[14:] = np.arange(6)[:, None] % 2, True
    samples = tuple(Sample(name, row) for name, row in zip(names, target))
    catalogue = Catalogue(("a", "b", "c"), samples, FileReader(root, names))

    def loader(indices, augmentation) -> PictureLoader:
        preprocess = Preprocess((SIDE, SIDE), 1, [0.5], [0.3], augmentation=augmentation)
        batches = EpochBatches(indices, 2, augmentation is not None, 11)
        return PictureLoader(PictureDataset(catalogue, preprocess, 11), Labels(target, mask), batches, BadPictures(0))

    return loader(np.arange(14), LightAugmentation()), loader(np.arange(14, 20), None)


def resumable(seed: int, schedule: str = "cosine", epochs: int = RESUME_EPOCHS) -> Trainer:
    return make_trainer(
        full_model(seed),
        schedule=schedule,
        steps=RESUME_EPOCHS * RESUME_STEPS,
        warmup=3,
        ema=0.9,
        epochs=epochs,
        accumulation_steps=2,
    )


def untimed(records: list[dict]) -> list[dict]:
    return [{k: v for k, v in r.items() if k not in ("seconds", "pictures_per_second", "memory_mib")} for r in records]


@pytest.fixture(scope="module", params=["cosine", "plateau"])
def undisturbed(request, pictures):
    """(schedule, records, final state, states after each step) of a run that nobody stops."""
    trainer, after_step = resumable(0, request.param), {}
    trainer.on_step = lambda step, figures: after_step.setdefault(step, copy.deepcopy(trainer.model.state_dict()))
    torch.manual_seed(99)
    records = fit(trainer, *make_loaders(pictures))
    assert trainer.state.global_step == RESUME_EPOCHS * RESUME_STEPS
    return request.param, untimed(records), {**snapshot(trainer), "random": trainer.state_dict()["random"]}, after_step


def stopped_run(pictures, schedule: str, path: Path, should_stop) -> tuple[list[dict], Interrupted]:
    """Run until should_stop(trainer), which also sees when a validation picture is read."""
    trainer, records = resumable(0, schedule), []
    trainer.should_stop = partial(should_stop, trainer)
    trainer.save = lambda t: save_checkpoint(t.state_dict(), path)
    trainer.on_epoch = lambda _, record, is_best: records.append({**record, "is_best": is_best})
    torch.manual_seed(99)
    with pytest.raises(Interrupted) as stop:
        trainer.fit(*make_loaders(pictures))
    return records, stop.value


def go_on(pictures, schedule: str, path: Path) -> tuple[list[dict], Trainer]:
    trainer = resumable(5, schedule)
    torch.manual_seed(123)
    trainer.load_state_dict(load_checkpoint(path))
    return fit(trainer, *make_loaders(pictures)), trainer


@pytest.mark.parametrize("step", range(1, RESUME_EPOCHS * RESUME_STEPS + 1))
def test_a_stopped_and_resumed_run_changes_no_bit(pictures, undisturbed, step, tmp_path):
    schedule, expected_records, expected, after_step = undisturbed
    path = tmp_path / "last.pth"
    number = signal.SIGTERM if step % 2 else signal.SIGINT
    before, stop = stopped_run(pictures, schedule, path, lambda t: number * (t.state.global_step >= step))
    assert stop.exit_code == 128 + number and len(before) == (step - 1) // RESUME_STEPS
    saved = load_checkpoint(path)
    assert saved["progress"]["global_step"] == step and differences(saved["model"], after_step[step]) == []
    after, trainer = go_on(pictures, schedule, path)
    assert untimed(before + after) == expected_records
    assert differences(expected, {**snapshot(trainer), "random": trainer.state_dict()["random"]}) == []


@pytest.mark.parametrize("epoch", range(1, RESUME_EPOCHS + 1))
@pytest.mark.parametrize("when", ["evaluating", "epoch_end"])
def test_a_stop_outside_of_training_steps(pictures, undisturbed, epoch, when, tmp_path):
    """What is saved are the model's own weights, never the averaged ones that it is evaluated with."""
    schedule, expected_records, expected, after_step = undisturbed
    path = tmp_path / "last.pth"

    def should_stop(trainer: Trainer) -> int:
        evaluating = not trainer.model.training and trainer.state.global_step == epoch * RESUME_STEPS
        done = trainer.state.epoch == epoch
        return signal.SIGINT * (evaluating if when == "evaluating" else done)

    before, stop = stopped_run(pictures, schedule, path, should_stop)
    assert stop.exit_code == 130 and len(before) == epoch - (when == "evaluating")
    saved = load_checkpoint(path)
    assert differences(saved["model"], after_step[saved["progress"]["global_step"]]) == []
    assert differences(saved["model"], saved["ema"]["shadow"]) != []
    after, trainer = go_on(pictures, schedule, path)
    assert untimed(before + after) == expected_records
    assert differences(expected, {**snapshot(trainer), "random": trainer.state_dict()["random"]}) == []


def test_resume_at_the_end_trains_no_more(pictures, tmp_path):
    trainer = resumable(0)
    fit(trainer, *make_loaders(pictures))
    save_checkpoint(trainer.state_dict(), tmp_path / "last.pth")
    records, resumed = go_on(pictures, "cosine", tmp_path / "last.pth")
    assert records == [] and differences(snapshot(trainer), snapshot(resumed)) == []
