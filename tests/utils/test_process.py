"""A process is prepared in one place, by scripts: choosing a device, importing and explaining leave it as it is."""

import ast
import os
from pathlib import Path

import pytest
import torch

from data.transforms.images import _import_albumentations
from training.precision import choose_device
from utils import process
from utils.process import prepare_process
from utils.seed import random_state, seeded

ROOT = Path(__file__).resolve().parents[2]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def kept(monkeypatch) -> list[str]:
    """What is asked of the allocator; cuDNN as it begins."""
    asked: list[str] = []
    monkeypatch.setattr(process, "keep_freed_memory", lambda: asked.append("keep"))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    return asked


def streams() -> dict:
    """Where all global generators stand, as plain values."""
    return {name: state.tolist() if name == "cpu" else state for name, state in random_state().items()}


def test_choosing_a_device_changes_nothing(kept, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = streams()
    assert choose_device("auto") == CUDA and choose_device("cpu") == CPU
    assert not torch.backends.cudnn.benchmark and kept == [] and streams() == before


def test_a_cpu_keeps_its_memory(kept):
    before = streams()
    prepare_process(CPU)
    assert kept == ["keep"] and not torch.backends.cudnn.benchmark and streams() == before


@pytest.mark.parametrize("deterministic", [False, True])
def test_cuda_tries_convolutions_unless_it_must_repeat_itself(deterministic, kept, monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    prepare_process(CUDA)
    assert torch.backends.cudnn.benchmark is not deterministic and kept == []


def test_a_seed_is_that_of_every_global_generator():
    prepare_process(CPU, 5)
    first = streams()
    prepare_process(CPU, 6)
    assert [name for name, state in streams().items() if state == first[name]] == []
    prepare_process(CPU, 5)
    assert streams() == first


def test_seeded_numbers_leave_the_streams_as_they_were():
    torch.rand(7)
    before = streams()
    with seeded(3):
        inside = torch.rand(4)
    assert streams() == before
    assert torch.equal(inside, torch.rand(4, generator=torch.Generator().manual_seed(3)))


def test_only_scripts_prepare_the_process():
    users = set()
    for path in ROOT.rglob("*.py"):
        names = path.relative_to(ROOT).parts
        if names[0] in ("tests", "checkpoints") or any(part.startswith(".") for part in names):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in ("utils.process", "utils.allocator"):
                users.add("/".join(names))
    top = ("benchmarks/", "hybridmednet/")  # they begin a training or a measurement, as scripts do
    scripts = {name for name in users if "/" not in name or "__main__" in name or name.startswith(top)}
    assert users - scripts == {"utils/process.py"} and "train.py" in scripts


def test_albumentations_is_imported_without_a_trace(monkeypatch):
    monkeypatch.delenv("NO_ALBUMENTATIONS_UPDATE", raising=False)
    before = dict(os.environ)
    _import_albumentations()
    assert dict(os.environ) == before
