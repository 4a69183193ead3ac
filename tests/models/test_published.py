"""Where weights are looked for: in the cache, and never for long."""

import time

from models.backbones import published
from models.backbones.published import locate_published, weights_findings


def test_a_cached_file(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda repository, file: f"{tmp_path}/{repository}/{file}"
    )
    found = locate_published("resnet18")
    assert found.where == "cached" and found.source.startswith(f"{tmp_path}/timm/resnet18")
    assert not list(weights_findings(found, "resnet18"))


def test_offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, file: None)
    found = locate_published("vim_tiny")
    (finding,) = weights_findings(found, "vim_tiny")
    assert found == ("unreachable", "hustvl/Vim-tiny-midclstok") and finding.severity == "error"


def test_a_name_server_that_does_not_answer(monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, file: None)
    monkeypatch.setattr(published, "_SECONDS", 0.05)
    monkeypatch.setattr(published, "hub_can_be_reached", lambda: time.sleep(1) or True)
    assert locate_published("resnet18").where == "unreachable"
    monkeypatch.setattr(published, "hub_can_be_reached", lambda: True)
    monkeypatch.setattr(published, "_SECONDS", 30.0)
    (finding,) = weights_findings(locate_published("resnet18"), "resnet18")
    assert finding.severity == "note" and "will be downloaded" in finding.message


def test_backbones_without_published_weights():
    assert locate_published("swin3d_tiny").where == "unknown"
