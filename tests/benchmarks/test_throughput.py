"""The half of the throughput benchmark that needs no GPU: training with a loader, and the table."""

import pytest
import torch

from benchmarks import throughput
from benchmarks.throughput import HEADINGS, Row, cells, main, rate_with_loader, write_images
from configs.default_config import Config
from data.builder import open_data
from data.phantom.radiographs import write_phantom


@pytest.mark.parametrize("name", ["mobilenetv3_small", "mobilenetv3_small+cbam"])
def test_images_are_trained_on(name, tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "EPOCHS", 2)
    monkeypatch.setattr(throughput.os, "cpu_count", lambda: 0)
    write_phantom(tmp_path / "images", 20, 64)
    rate = rate_with_loader(name, 8, False, str(tmp_path / "images"), torch.device("cpu"), 64)
    assert 0 < rate < 1e5


def test_images_are_drawn_once_and_there_several_times(tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "IMAGES", 12)
    monkeypatch.setattr(throughput, "DRAWN", 4)
    monkeypatch.setattr(throughput, "SIZE", 64)
    write_images(tmp_path / "images")
    dataset_index = open_data(Config.from_overrides([f"DATA.data_dir={tmp_path / 'images'}"]))
    patients = {study.patient_id for study in dataset_index.studies}
    assert len(dataset_index.studies) == 12 and len(patients) == 3 * len([p for p in patients if p.startswith("p")])
    assert len(list((tmp_path / "images" / "images").iterdir())) == 12


def test_rows_say_what_was_wanted():
    lines = [cells(Row(name, True, 128, 1000, 2000, 0.25, 3.0, loader)) for name, loader in NETWORKS]
    assert "≥ 20% |" in lines[0] and "| 900 |" in lines[0]
    assert "≥ 30%, missed" in lines[1] and "| – |" in lines[1]
    assert all(line.count("|") == HEADINGS.count("|") for line in lines)


NETWORKS = (("resnet50", 900.0), ("swin_base+cross_scale", None), ("vim_small", 1.0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_it_says_that_it_needs_a_gpu(capsys):
    assert main([]) == 2 and "needs a CUDA device" in capsys.readouterr().err
