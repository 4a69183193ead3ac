"""Versions, disk, workers and memory against small worlds that are made here."""

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch import nn

from utils.examination import disk, machine, versions
from utils.examination.disk import Wanted, disk_findings
from utils.examination.machine import Memory, memory_of, worker_findings
from utils.examination.memory import StepMemory, memory_findings, standing_bytes
from utils.examination.versions import version_findings

GIB = 2**30
Usage = namedtuple("Usage", "total used free")


def test_requirements_are_compared(tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text(
        "# comment\nnumpy>=1.0  # here\npyyaml<1\nno-such-package-xyz>=2\nx; python_version<'3'\n-r other\n??\n"
    )
    told = [(one.severity, one.message) for one in version_findings(path)]
    assert [severity for severity, _ in told] == ["error", "error", "note"]
    assert "pyyaml is " in told[0][1] and "no-such-package-xyz is not installed" in told[1][1]


def test_the_environment_of_this_test_is_as_required():
    assert [one for one in version_findings() if one.severity == "error"] == []


def test_a_torchvision_for_another_torch(monkeypatch):
    known = {"torch": "2.14.1+cpu", "torchvision": "0.20.0"}
    monkeypatch.setattr(versions, "version_of", known.get)
    monkeypatch.setattr(versions, "_requires", lambda name: ["numpy", "torch==2.5.0"])
    assert [one.message for one in versions._pairs()] == [
        "torchvision 0.20.0 is built for torch==2.5.0, and torch is 2.14.1+cpu"
    ]
    monkeypatch.setattr(versions, "_requires", lambda name: ["torch==2.14.1"])
    assert not list(versions._pairs())


def test_folders_that_can_be_written_and_are_left_as_they_were(tmp_path):
    assert not list(disk_findings(Wanted("CHECKPOINT.save_dir", tmp_path / "a" / "b", 1, 2)))
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot(tmp_path):
    (tmp_path / "file").write_text("")
    told = [
        *disk_findings(Wanted("X", tmp_path / "file" / "runs")),
        *disk_findings(Wanted("X", Path("/proc/x"), optional=True)),
    ]
    assert [one.severity for one in told] == ["error", "warning"] and "is a file" in told[0].message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    (found,) = disk_findings(Wanted("X", tmp_path / "runs"))
    tmp_path.chmod(0o700)
    assert found.severity == "error" and "ermission" in found.message


@pytest.mark.parametrize("free, severities", [(5, ["error"]), (50, ["warning"]), (500, [])])
def test_space(tmp_path, monkeypatch, free, severities):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(1000, 0, free))
    assert [one.severity for one in disk_findings(Wanted("X", tmp_path, 10, 100))] == severities


def test_workers(monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 2.0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 64 * 2**20))
    monkeypatch.setattr(machine, "_SHARED", Path("/"))
    told = list(worker_findings(4, 30 * 2**20))
    assert [one.severity for one in told] == ["note", "warning"] and "270 MiB" in told[1].message
    assert not list(worker_findings(2, 2**20)) and not list(worker_findings(0, 2**40))


def test_a_container_with_less_memory_than_its_machine(monkeypatch, tmp_path):
    whole = memory_of(torch.device("cpu"))
    assert whole is not None and 0 < whole.free <= whole.total
    (tmp_path / "memory.max").write_text(str(GIB))
    (tmp_path / "memory.current").write_text(str(GIB // 4))
    (tmp_path / "cpu.max").write_text("50000 100000")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert memory_of(torch.device("cpu")) == Memory(GIB, GIB * 3 // 4)
    assert machine.cores() == 0.5


def test_what_stands_in_memory():
    model = nn.Linear(10, 10)
    assert standing_bytes(model, "adamw", True) == 4 * 110 * 4
    model.bias.requires_grad_(False)
    assert standing_bytes(model, "sgd", False) == 4 * (110 + 100)


STEP = StepMemory(standing=2 * GIB, batch=32, activations=16 * GIB, recomputed=4 * GIB)


@pytest.mark.parametrize(
    "total, free, adapts, severity, advice",
    [
        (20, 19, True, "", ""),
        (20, 10, False, "warning", "TRAIN.batch_size=16 TRAIN.gradient_accumulation_steps=2"),
        (10, 10, True, "warning", "MODEL.gradient_checkpointing.enabled=true (fits"),
        (10, 10, False, "error", "TRAIN.batch_size=16 TRAIN.gradient_accumulation_steps=2"),
        (3, 3, False, "error", "enabled=true TRAIN.batch_size=8 TRAIN.gradient_accumulation_steps=4"),
        (1, 1, True, "error", "a smaller MODEL.backbone"),
    ],
)
def test_memory(total, free, adapts, severity, advice):
    found = list(memory_findings(STEP, Memory(total * GIB, free * GIB), adapts, 1))
    assert [one.severity for one in found] == ([severity] if severity else [])
    assert all(advice in one.advice for one in found)
