"""MODEL.init_from: everything but a head for other classes is loaded strictly; errors name the file."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from configs.default_config import Config
from configs.errors import CheckpointError, WeightsError
from models import HybridMedNet, create_model, start_from
from models.head_rows import class_counts
from utils.checkpoint import save_checkpoint

LEGACY = Path(__file__).resolve().parents[2].parent / "shared" / "legacy"


def settings(**model_settings) -> Config:
    config = Config()
    small = {
        "backbone": "timm/test_resnet",
        "pretrained": False,
        "fpn_channels": 16,
        "fusion_channels": 16,
        "num_classes": 3,
    }
    for key, value in {**small, **model_settings}.items():
        config.MODEL[key] = value
    config.DATA.image_size = 32
    return config


def assert_started(model: HybridMedNet, weights: dict, head: dict) -> None:
    """All from `weights` but the head's, which are from `head`."""
    found = model.state_dict()
    assert found.keys() == weights.keys() == head.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, (head if name.startswith("classifier.") else weights)[name]), name


@pytest.fixture(scope="module")
def source() -> dict[str, torch.Tensor]:
    """A network for 3 classes."""
    return HybridMedNet(settings()).state_dict()


WRITERS = {
    "checkpoint.pth": lambda weights, path: save_checkpoint({"model": weights, "ema": None}, path),
    "old.pth": lambda weights, path: torch.save({"epoch": 3, "model_state_dict": weights}, path),
    "bare.pth": torch.save,
    "wrapped.pth": lambda weights, path: torch.save({f"module._orig_mod.{n}": t for n, t in weights.items()}, path),
    "weights.safetensors": save_file,
}


@pytest.mark.parametrize("name", WRITERS)
def test_each_kind_of_file_gives_all_weights(name, source, tmp_path):
    path = tmp_path / name
    WRITERS[name](source, path)
    model = create_model(settings(init_from=str(path)))
    assert_started(model, source, source)
    assert model.started_from == f"weights of '{path}' with its head for 3 classes"
    assert model.summary().endswith(f", {model.started_from}")


@pytest.fixture
def file(source, tmp_path) -> Path:
    save_checkpoint({"model": source}, tmp_path / "source.pth")
    return tmp_path / "source.pth"


def test_other_classes_get_a_new_head(source, file):
    model = HybridMedNet(settings(num_classes=5))
    head = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    message = start_from(model, str(file))
    assert message == f"weights of '{file}' but for its head: that is for 3 classes, the new one for 5 classes"
    assert_started(model, source, head)


@pytest.mark.parametrize("hierarchical", [False, True])
def test_a_head_with_coarse_classes_and_one_without_give_way_to_each_other(tmp_path, hierarchical):
    weights = HybridMedNet(settings(hierarchical=hierarchical, num_coarse_classes=2)).state_dict()
    save_file(weights, tmp_path / "w.safetensors")
    model = HybridMedNet(settings(hierarchical=not hierarchical, num_coarse_classes=2))
    head = {name: tensor.clone() for name, tensor in model.state_dict().items() if name.startswith("classifier.")}
    message = start_from(model, str(tmp_path / "w.safetensors"))
    words = ["3 classes", "3 classes and 2 coarse classes"][:: -1 if hierarchical else 1]
    assert message.endswith(f"but for its head: that is for {words[0]}, the new one for {words[1]}")
    body = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier.")}
    found = model.state_dict()
    assert found.keys() == body.keys() | head.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in (body | head).items())


def test_other_coarse_classes_get_a_new_head(tmp_path):
    weights = HybridMedNet(settings(hierarchical=True, num_coarse_classes=3)).state_dict()
    save_file(weights, tmp_path / "w.safetensors")
    model = HybridMedNet(settings(hierarchical=True, num_coarse_classes=2))
    head = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    message = start_from(model, str(tmp_path / "w.safetensors"))
    assert message.endswith("for 3 classes and 3 coarse classes, the new one for 3 classes and 2 coarse classes")
    assert_started(model, weights, head)


@pytest.mark.parametrize("head", [{}, {"norm": "group"}, {"hierarchical": True}], ids=str)
def test_the_class_counts_are_those_of_the_settings(head):
    counts = class_counts(HybridMedNet(settings(num_classes=7, num_coarse_classes=4, **head)).state_dict())
    assert list(counts.values()) == ([7, 4] if "hierarchical" in head else [7])


def test_no_published_weights_are_fetched(file, monkeypatch):
    monkeypatch.setattr("models.backbones.timm_backbones.find_weights", lambda *_: pytest.fail("fetched"))
    create_model(settings(init_from=str(file), pretrained=True))


def test_a_model_from_a_checkpoint_reads_no_other_file():
    config = settings(init_from="gone.pth").without_pretrained()
    assert config.MODEL.init_from is None and create_model(config).started_from == ""


@pytest.mark.skipif(not LEGACY.is_dir(), reason="no ../shared/legacy here: names of the previous release")
def test_a_file_of_the_previous_release_with_its_config(tmp_path):
    names = json.loads((LEGACY / "manifest.json").read_text(encoding="utf-8"))["resnet34/flat"]
    old = {name: torch.full(shape, 0.5) if shape else torch.tensor(0) for name, shape in names}
    torch.save({"epoch": 3, "model_state_dict": old}, tmp_path / "old.pth")
    classic = {"backbone": "resnet34", "fpn_channels": 256, "fusion_channels": 512}
    model = create_model(settings(**classic, num_classes=2, init_from=str(tmp_path / "old.pth")))
    assert "for 14 classes, the new one for 2 classes" in model.started_from
    halves = {name for name, tensor in model.state_dict().items() if (tensor == (0.5 if tensor.ndim else 0)).all()}
    assert {name for name in model.state_dict() if not name.startswith("classifier.")} <= halves
    assert "classifier.classifiers.hidden.weight" not in halves


# ---- refusals


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"fusion_channels": 32}, r"of another shape \(fusion\.scale_convs"),
        ({"backbone": "resnet18"}, r"missing \(backbone\.body\.conv1\.weight"),
        ({"in_channels": 1}, r"backbone\.body\.conv1\.0\.weight: \(16, 3, 3, 3\) instead of \(16, 1, 3, 3\)"),
        ({"fusion_channels": 32, "num_classes": 5}, r"of another shape \(fusion\.scale_convs"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_an_error_that_names_the_file(changed, words, file):
    config = settings(**changed)
    model = HybridMedNet(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match=rf"source\.pth': .*{words}"):
        start_from(model, str(file))
    assert_started(model, before, before)
    config.MODEL.init_from = str(file)
    with pytest.raises(WeightsError, match=rf"^MODEL\.init_from: .*{words}"):
        create_model(config)


def test_a_backbone_alone_is_refused_with_the_setting_for_it(tmp_path):
    path = tmp_path / "resnet18.pth"
    torch.save(timm.create_model("resnet18").state_dict(), path)
    with pytest.raises(WeightsError, match=rf"MODEL\.pretrained={path}"):
        create_model(settings(init_from=str(path)))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"MODEL\.init_from: .*none\.pth' does not exist"):
        create_model(settings(init_from=str(tmp_path / "none.pth")))
