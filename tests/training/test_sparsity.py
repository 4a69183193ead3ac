"""Pruned weights: which they are, that they stay zero, also in the average, and in a run that is resumed."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from configs.default_config import Config
from configs.errors import ConfigError
from tests.training.toys import (
    TensorLoader,
    differences,
    full_model,
    make_trainer,
    random_data,
    snapshot,
    train_windows,
)
from training.builder import build_learner
from training.sparsity import SparseWeights, prune_smallest


@pytest.mark.parametrize("amount", [0.1, 0.5, 0.9])
def test_the_smallest_weights_of_the_whole_network_are_zero(amount):
    model = full_model(3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    sparse = prune_smallest(model, amount)
    named = [
        (abs(float(w)), name, i) for name in ("0.weight", "5.weight") for i, w in enumerate(before[name].flatten())
    ]
    count = round(amount * len(named))
    smallest = {(name, i) for _, name, i in sorted(named)[:count]}
    for name, parameter in model.named_parameters():
        for i, (now, old) in enumerate(zip(parameter.detach().flatten(), before[name].flatten())):
            assert float(now) == (0.0 if (name, i) in smallest else float(old))
    assert sparse.fraction == pytest.approx(count / len(named))


def test_what_is_spared_stays():
    model = full_model(3)
    before = model[5].weight.detach().clone()
    sparse = prune_smallest(model, 0.5, spared=("5",))
    assert torch.equal(model[5].weight, before) and sparse.names == ["0.weight"]
    with pytest.raises(ConfigError, match="no convolutions or linear layers"):
        prune_smallest(nn.Sequential(nn.BatchNorm1d(3)), 0.5)


def pruned_trainer(kind: str = "adamw", seed: int = 1):
    model = full_model(seed)
    sparse = prune_smallest(model, 0.6)
    return make_trainer(model, kind=kind, ema=0.9, accumulation_steps=2, sparsity=sparse)


def zeros(state: dict) -> dict[str, np.ndarray]:
    return {name: (state[name] == 0).numpy() for name in ("0.weight", "5.weight")}


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_they_stay_zero_in_training_and_in_the_average(kind):
    trainer = pruned_trainer(kind)
    start = copy.deepcopy(trainer.model.state_dict())
    trainer.train_epoch(TensorLoader(*random_data(64), 8))
    for state in (trainer.model.state_dict(), trainer.learner.ema.shadow):
        for name, mask in zeros(start).items():
            assert np.array_equal((state[name] == 0).numpy(), mask)
    assert not torch.equal(start["0.weight"], trainer.model.state_dict()["0.weight"])


def test_interrupted_and_resumed_bit_for_bit():
    """The new process prunes other weights at first: it begins with others."""
    loader = TensorLoader(*random_data(32), 4)
    whole = pruned_trainer()
    torch.manual_seed(3)
    whole.train_epoch(loader)
    first = pruned_trainer()
    torch.manual_seed(3)
    first.model.train()
    train_windows(first, loader, 2)
    saved = copy.deepcopy(first.learner.state_dict())
    second = pruned_trainer(seed=9)
    second.learner.load_state_dict(saved)
    assert (
        isinstance(second.learner.sparsity, SparseWeights)
        and second.learner.sparsity.fraction == first.learner.sparsity.fraction
    )
    second.train_epoch(loader)
    assert differences(snapshot(whole), snapshot(second)) == []


def test_the_setting_arrives_and_spares_the_head():
    overrides = ["TRAIN.pruning.method=unstructured", "TRAIN.pruning.amount=0.75", "MODEL.init_from=some.pth"]
    config = Config.from_overrides(overrides).resolve(("a", "b", "c"))
    model = nn.Sequential()
    model.add_module("body", nn.Linear(8, 4))
    model.add_module("classifier", nn.Sequential(nn.Linear(4, 3)))
    learner = build_learner(config, model, 10)
    assert int((model.body.weight == 0).sum()) == 24 and learner.sparsity.names == ["body.weight"]
    assert build_learner(Config().resolve(("a", "b", "c")), nn.Linear(4, 3), 10).sparsity is None


def test_it_needs_trained_weights():
    with pytest.raises(ConfigError, match=r"TRAIN\.pruning is for trained weights: name them by MODEL\.init_from"):
        Config.from_overrides(["TRAIN.pruning.method=unstructured"])
