"""Trainer with a network and loaders of a user: plain torch's weights, train.py's files, resume, errors of one line."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from configs.default_config import Config
from configs.errors import CheckpointError, ConfigError, DataError, HybridMedNetError, ModelError, TrainingError
from hybridmednet.trainer import Trainer
from tests.kill_harness import flatten, identical
from utils.checkpoint import load_checkpoint
from utils.gradient_checkpointing import apply_gradient_checkpointing
from utils.runs.control import Control

COUNT, BATCH, CLASSES, SIDE = 22, 4, 3, 4
NUMBERS = torch.arange(COUNT) % CLASSES
IMAGES = torch.randn(COUNT, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) + NUMBERS[:, None, None, None]
COLUMNS = nn.functional.one_hot(NUMBERS, CLASSES).float()


class Network(nn.Module):
    """With what makes resuming hard: batch normalisation and dropout."""

    def __init__(self, classes: int = CLASSES, dropout: float = 0.3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(4, classes))

    def forward(self, image):
        return self.head(self.body(image))


def network(**options) -> Network:
    torch.manual_seed(3)
    return Network(**options)


def loader(labels=NUMBERS, images=IMAGES, **options) -> DataLoader:
    return DataLoader(TensorDataset(images, labels), BATCH, **options)


def settings(**train) -> Config:
    config = Config()
    config.LOGGING.tensorboard, config.CHECKPOINT.save_freq, config.LOGGING.progress = False, 0, "plain"
    plain = {"mixed_precision": False, "channels_last": False, "device": "cpu", "warmup_epochs": 0.0}
    for key, value in {**plain, **train}.items():
        config.TRAIN[key] = value
    return config


def trainer(model=None, train=None, val=None, **options) -> Trainer:
    options.setdefault("config", settings())
    train = loader(shuffle=True) if train is None else train  # an empty loader is false
    return Trainer(model or network(), train, val or loader(), **options)


def content(folder: Path, name: str = "last.pth"):
    return load_checkpoint(folder / name)


class AskOnce(Control):
    """Asks to pause at the n-th look."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def request(self):
        self.at -= 1
        return "pause" if self.at == 0 else None


# ---- the same as by hand


def test_the_weights_are_those_of_a_plain_loop_with_one_batch_a_window(tmp_path):
    """Micro-batches of 4, 4, … with accumulation 3 step as torch steps on batches of 12, whose last is shorter."""
    model = network(dropout=0.0)
    model.body[1] = nn.Identity()  # its statistics would be of the micro-batch
    mine = copy.deepcopy(model)
    config = settings(gradient_accumulation_steps=3, gradient_clip_norm=None, lr_scheduler="constant")
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-2)
    run = Trainer(model, loader(), loader(), optimizer=optimizer, criterion=nn.CrossEntropyLoss(), config=config)
    run.train(epochs=2, folder=tmp_path / "run")

    reference = torch.optim.RMSprop(mine.parameters(), lr=1e-2)
    for _ in range(2):
        for images, labels in zip(IMAGES.split(12), NUMBERS.split(12)):
            reference.zero_grad()
            nn.functional.cross_entropy(mine(images), labels).backward()
            reference.step()
    for ours, theirs in zip(model.parameters(), mine.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_groups_keep_their_rates_and_the_schedule_multiplies_them(tmp_path):
    model = network()
    groups = [{"params": model.body.parameters(), "lr": 1e-3}, {"params": model.head.parameters()}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    config = settings(lr_scheduler="cosine", min_learning_rate=1e-4)
    trainer(model, optimizer=optimizer, config=config).train(epochs=1, folder=tmp_path / "run")
    low, high = (group["lr"] for group in optimizer.param_groups)
    assert (low, high) == pytest.approx((1e-4, 1e-3))  # the end of the cosine, the second ten times the first
    assert content(tmp_path / "run")["config"]["TRAIN"]["learning_rate"] == 1e-3


# ---- files, resume


def test_a_run_has_the_files_of_train_py_and_its_figures(tmp_path):
    config = settings(ema_decay=0.5)
    config.LOGGING.tensorboard, config.LOGGING.log_dir = True, str(tmp_path / "logs")
    result = trainer(config=config, class_names=["a", "b", "c"]).train(epochs=2, folder=tmp_path / "run")
    wanted = {"config.yaml", "metrics.jsonl", "last.pth", "best_model.pth", "environment.json", "status.json"}
    assert wanted | {"train.log", "training_curves.png"} <= {path.name for path in result.folder.iterdir()}
    assert any((tmp_path / "logs" / "run").iterdir())
    assert result.finished and [one["name"] for one in result.report["per_class"]] == ["a", "b", "c"]
    saved = content(result.folder, "best_model.pth")
    assert saved["own_model"] == "Network" and saved["class_names"] == ["a", "b", "c"]
    assert saved["config"]["DATA"]["image_size"] == [SIDE, SIDE] and saved["operating_point"] is not None


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_paused_and_resumed_run_ends_with_the_same_bits(tmp_path, workers):
    class Noisy(TensorDataset):
        """Draws from all three global generators."""

        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            drawn = float(np.random.rand()) + float(torch.rand(())) + torch.randn(()).item()  # noqa: NPY002
            return image + drawn / 10, label

    def run(folder, **others):
        data = DataLoader(Noisy(IMAGES, NUMBERS), BATCH, shuffle=True, num_workers=workers)
        config = settings(ema_decay=0.9, gradient_accumulation_steps=2)
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        return trainer(model, data, optimizer=optimizer, config=config).train(epochs=2, folder=folder, **others)

    run(tmp_path / "whole")
    cut = run(tmp_path / "cut", control=AskOnce(11))  # in the middle of the second epoch
    assert cut.interrupted is not None and content(cut.folder)["progress"]["sums"]["batches"] == 2
    torch.randn(7)  # what was drawn since does not matter
    assert run(tmp_path / "cut", resume=True).finished
    one, other = (
        dict(flatten({k: content(tmp_path / n)[k] for k in ("model", "ema", "optimizer")})) for n in ("whole", "cut")
    )
    assert one.keys() == other.keys() and [key for key in one if not identical(one[key], other[key])] == []


def test_resume_true_begins_where_there_is_nothing_and_goes_on_to_more_epochs(tmp_path):
    folder = tmp_path / "run"
    trainer().train(epochs=1, folder=folder, resume=True)
    with pytest.raises(CheckpointError, match="resume=True goes on with it"):
        trainer().train(epochs=2, folder=folder)
    result = trainer().train(epochs=2, folder=folder, resume=True)
    assert content(result.folder)["progress"]["epoch"] == 2
    assert trainer().train(epochs=3, resume=folder / "last.pth").folder == folder
    with pytest.raises(CheckpointError, match=r"has another model .* is lacking"):
        trainer(nn.Sequential(nn.Flatten(), nn.Linear(48, 3))).train(epochs=4, folder=folder, resume=True)


# ---- forms of batches and labels


def test_dicts_train_as_pairs_do(tmp_path):
    dicts = DataLoader([{"image": i, "label": one} for i, one in zip(IMAGES, NUMBERS)], BATCH)
    one, other = (trainer(train=data).train(epochs=1, folder=tmp_path / str(id(data))) for data in (dicts, loader()))
    assert one.best["train_loss"] == other.best["train_loss"]


@pytest.mark.parametrize("unknown", [float("nan"), -1.0])
def test_unknown_labels_are_masked(tmp_path, unknown):
    """Those that are unknown may be anything: the weights are the same, and figures count the known ones."""
    labels = COLUMNS.clone()
    labels[::2, 1] = unknown
    masked = loader(labels)
    result = trainer(train=masked, val=masked).train(epochs=1, folder=tmp_path / "run")
    row = result.best["per_class"][1]
    assert row["positives"] + row["negatives"] == COUNT // 2
    mask = torch.ones_like(COLUMNS, dtype=torch.bool)
    mask[::2, 1] = False
    other = DataLoader(TensorDataset(IMAGES, torch.where(mask, COLUMNS, 0.3), mask), BATCH)
    again = trainer(train=other, val=masked).train(epochs=1, folder=tmp_path / "other")
    assert again.best["train_loss"] == result.best["train_loss"]


def test_one_logit_takes_labels_of_one_axis(tmp_path):
    labels = (NUMBERS > 0).float()
    result = trainer(network(classes=1), loader(labels), loader(labels)).train(epochs=1, folder=tmp_path / "run")
    assert result.best["mean_auroc"] is not None
    assert content(tmp_path / "run")["config"]["MODEL"]["task"] == "binary"


def test_a_criterion_of_other_labels_is_trained_and_scored_by_its_loss_alone(tmp_path, caplog):
    ages = IMAGES.mean((1, 2, 3))[:, None] * 10
    given = loader(ages)
    model = network(classes=1, dropout=0.0)
    result = trainer(model, given, given, criterion=nn.MSELoss()).train(epochs=1, folder=tmp_path / "run")
    assert result.best["mean_auroc"] is None and "gives the loss alone" in caplog.text
    weights = content(tmp_path / "run", "best_model.pth")["model"]
    model.load_state_dict(weights)
    with torch.no_grad():
        expected = nn.functional.mse_loss(model.eval()(IMAGES), ages)
    assert result.best["val_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_volumes_and_other_channels_are_taken(tmp_path):
    for number, shape in enumerate([(2, SIDE, SIDE), (1, SIDE, SIDE, SIDE)]):
        images = torch.randn(8, *shape)
        data = loader(NUMBERS[:8], images)
        model = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), CLASSES))
        config = settings(channels_last="auto")
        assert trainer(model, data, data, config=config).train(epochs=1, folder=tmp_path / str(number)).finished


def test_a_network_that_cannot_be_probed_with_one_image_is_trained_all_the_same(tmp_path, caplog):
    """Batch normalisation of maps of one place needs two images; planning its recomputation says so, too."""
    blocks = [nn.Conv2d(3, 4, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten()]
    model = apply_gradient_checkpointing(nn.Sequential(*blocks, nn.Linear(4, CLASSES)))
    data = loader(drop_last=True)
    config = settings(channels_last="auto")
    assert trainer(model, data, config=config).train(epochs=1, folder=tmp_path / "run").finished
    assert "not probed" in caplog.text


# ---- errors


WRONG = {
    "numbers too large": (dict(train=loader(NUMBERS + 1)), DataError, "class number 3 is not allowed"),
    "numbers as floats": (dict(train=loader(NUMBERS.float())), DataError, r"labels are \(4,\) float32: for 3 logits"),
    "columns": (dict(train=loader(torch.zeros(COUNT, 5))), DataError, r"labels are \(4, 5\)"),
    "label 7": (dict(train=loader(COLUMNS * 7)), DataError, "the label 7 is not allowed"),
    "bad val": (dict(val=loader(torch.zeros(COUNT, 5))), DataError, "batch 0 of val_loader"),
    "bytes": (dict(train=loader(images=IMAGES.to(torch.uint8))), DataError, "uint8: they must be floating-point"),
    "empty": (dict(train=loader(NUMBERS[:2], IMAGES[:2], drop_last=True)), DataError, "train_loader is empty"),
    "an iterator": (dict(val=iter(loader())), DataError, "val_loader is .* gone through once"),
    "no loader": (dict(train=5), DataError, "train_loader is int"),
    "other keys": (dict(train=DataLoader([{"img": IMAGES[0], "label": 1}], 1)), DataError, "has img, label"),
    "four parts": (dict(train=[(1, 2, 3, 4)]), DataError, "tuple of 4"),
    "no module": (dict(model=len), ModelError, "must be an nn.Module"),
    "no parameters": (dict(model=nn.Flatten()), ModelError, "Flatten has no parameters"),
    "one axis": (dict(model=nn.Sequential(network(), nn.Flatten(0))), ModelError, r"\[4, classes\]"),
    "channels": (dict(train=loader(images=IMAGES[:, :1])), ModelError, r"failed on images \(4, 1, 4, 4\)"),
    "names": (dict(class_names=["a", "b"]), ConfigError, "3 logits, class_names names 2"),
    "criterion": (dict(criterion=nn.BCEWithLogitsLoss()), TrainingError, r"failed on logits \(4, 3\).*labels \(4,\)"),
    "no mean": (dict(criterion=nn.CrossEntropyLoss(reduction="none")), TrainingError, "must give one number"),
    "learnt criterion": (dict(criterion=nn.Linear(3, 1)), TrainingError, "parameters of its own"),
    "optimizer": (dict(optimizer=torch.optim.SGD(network().parameters())), TrainingError, "are not the model's"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_trained_is_an_error_of_one_line(tmp_path, name):
    options, kind, words = WRONG[name]
    with pytest.raises(kind, match=words) as raised:
        trainer(**options).train(epochs=1, folder=tmp_path / "run")
    assert isinstance(raised.value, HybridMedNetError) and "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists(), "nothing is written before"


def test_settings_without_effect_are_named_and_impossible_ones_refused(caplog):
    config = settings()
    config.MODEL.backbone, config.DATA.data_dir = "resnet18", "somewhere"
    trainer(config=config)
    assert "without effect" in caplog.text and "MODEL.backbone, DATA.data_dir" in caplog.text
    for section, key, value in [("LOSS", "pos_weight", "auto"), ("LOSS", "teacher", "run")]:
        config = settings()
        config[section][key] = value
        with pytest.raises(ConfigError, match=key):
            trainer(config=config)
    config = settings()
    config.MODEL.gradient_checkpointing.enabled = True
    with pytest.raises(ConfigError, match="apply_gradient_checkpointing"):
        trainer(config=config)
