"""What the model benchmark makes of its figures, and that it measures what it says."""

import torch
from torch import nn

from benchmarks.gradient_checkpointing import saved_bytes
from benchmarks.model import HEADINGS, NAMES, Row, cells, main


def test_ratios_and_verdicts():
    row = Row("convnext_tiny+cbam", 4, 2.0, 2.4, 100.0, 130.0)
    assert (row.time_ratio, row.bytes_ratio) == (1.2, 1.3)
    line = cells(row)
    assert "1.20 | ≤ 1.25 |" in line and line.endswith("1.30 | ≤ 1.25, MISSED")
    assert line.count("|") == HEADINGS.count("|")
    assert Row("resnet50+cbam", 4, 1, 1.9, 1, 1.4).wanted == (2.0, 1.5)


def test_bytes_are_those_that_a_layer_keeps():
    # Two linear layers keep the input, which does not count, and the map between; the loss keeps its argument.
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    assert 0 <= saved_bytes(network, torch.randn(32, 8)) - 4 * 32 * (16 + 4) < 64  # and numbers without axes


def test_unknown_networks_are_refused(capsys):
    assert main(["--backbone", "resnet50+cbam", "resnet51+cbam", "resnet50"]) == 2
    message = capsys.readouterr().err
    assert "resnet51+cbam, resnet50+:" in message and "cross_scale" in message
    assert len(NAMES) == 10
