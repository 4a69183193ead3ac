"""A head that starts from a file: rows go by the names of classes and coarse classes, and what is new is said."""

import copy
from pathlib import Path

import pytest
import torch

from configs.default_config import Config
from configs.errors import CheckpointError, WeightsError
from models import HybridMedNet, create_model
from utils.checkpoint import save_checkpoint, write_safetensors

HEAD = "classifier."
LUNG, HEART, AIR = {"lung": ["a", "b"]}, {"heart": ["c"]}, {"air": ["b", "c"]}


def settings(names, groups=None, init_from: Path | None = None, **model) -> Config:
    config = Config()
    small = {"backbone": "timm/test_resnet", "pretrained": False, "fpn_channels": 16, "fusion_channels": 16}
    for key, value in {**small, **model}.items():
        config.MODEL[key] = value
    config.DATA.image_size = 32
    config.MODEL.hierarchical = groups is not None
    config.MODEL.coarse_groups = groups or None
    config.MODEL.init_from = None if init_from is None else str(init_from)
    return config.resolve(names)


def written(settled: Config, path: Path, **more) -> dict[str, torch.Tensor]:
    """The weights of such a network, in a file that says what a checkpoint does."""
    weights = HybridMedNet(settled).state_dict()
    description = {"class_names": settled.DATA.class_names, "config": settled.model_dump(mode="json"), **more}
    if path.suffix == ".pth":
        save_checkpoint({"model": weights, **description}, path)
    else:
        write_safetensors(path, weights, description)
    return weights


def seeded(config: Config, monkeypatch) -> tuple[HybridMedNet, dict[str, torch.Tensor]]:
    """(the network that starts from the file, what its own weights were before)."""
    before = {}

    def kept(self, *arguments, **options):
        before.update(copy.deepcopy(self.state_dict()))
        return load(self, *arguments, **options)

    load = HybridMedNet.load_state_dict
    monkeypatch.setattr(HybridMedNet, "load_state_dict", kept)
    return create_model(config), before


def flat_row(weights: dict, k: int) -> list[torch.Tensor]:
    """All numbers that one class's logit depends on, beside what all share."""
    hidden = weights[f"{HEAD}classifiers.weight"].shape[1]
    rows = slice(k * hidden, (k + 1) * hidden)
    own = [weights[f"{HEAD}classifiers.{name}"][k] for name in ("weight", "bias")]
    return [weights[f"{HEAD}classifiers.hidden.{name}"][rows] for name in ("weight", "bias")] + own


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def shared(weights: dict) -> list[torch.Tensor]:
    return [tensor for name, tensor in sorted(weights.items()) if name.startswith(f"{HEAD}feature_fusion.")]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_classes_in_another_order_give_the_same_logits_by_name(suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    old = settings(["a", "b", "c"])
    source = HybridMedNet(old)
    source.load_state_dict(written(old, path))
    model = create_model(settings(["c", "a", "b"], init_from=path))
    images = torch.randn(3, 3, 32, 32)
    expected, found = source.eval()(images), model.eval()(images)
    assert torch.equal(found, expected[:, [2, 0, 1]]) and expected.std() > 0
    assert model.started_from == f"weights of '{path}' with its head for the classes c, a, b in their new order"


def test_of_other_classes_those_of_the_same_name_keep_their_rows(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    weights = written(settings(["a", "b", "c"]), path)
    model, own = seeded(settings(["d", "c", "a", "e"], init_from=path), monkeypatch)
    found = model.state_dict()
    for k, place in enumerate([None, 2, 0, None]):
        expected = flat_row(own, k) if place is None else flat_row(weights, place)
        assert same(flat_row(found, k), expected), k
    assert same(shared(found), shared(weights)) and not same(shared(found), shared(own))
    assert model.started_from.endswith("with its head for the classes c, a (new: d, e; left out: b)")


def test_as_many_classes_of_other_names_get_a_new_head(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    written(settings(["a", "b", "c"]), path)
    model, own = seeded(settings(["x", "y", "z"], init_from=path), monkeypatch)
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items() if name.startswith(HEAD))
    assert model.started_from.endswith("but for its head: that is for other classes (a, b, c)")


def coarse_row(weights: dict, g: int, groups: int = 2) -> list[torch.Tensor]:
    """A coarse logit's own numbers, and what the findings make of it."""
    seen = weights[f"{HEAD}fine_classifier.0.weight"]
    own = [weights[f"{HEAD}coarse_classifier.4.{name}"][g] for name in ("weight", "bias")]
    return [*own, seen[:, seen.shape[1] - groups + g]]


def body(weights: dict) -> list[torch.Tensor]:
    """Of a hierarchical head all that belongs to no class and to no coarse class."""
    seen = weights[f"{HEAD}fine_classifier.0.weight"][:, :16]
    rows = ("coarse_classifier.4.", "fine_classifier.4.", "fine_classifier.0.weight")
    return [
        seen,
        *(t for name, t in sorted(weights.items()) if name.startswith(HEAD) and not any(row in name for row in rows)),
    ]


def test_coarse_classes_in_another_order_give_the_same_logits_by_name(tmp_path):
    path, names = tmp_path / "w.pth", ["a", "b", "c"]
    old = settings(names, LUNG | HEART)
    source = HybridMedNet(old)
    source.load_state_dict(written(old, path))
    model = create_model(settings(names, HEART | LUNG, init_from=path))
    images = torch.randn(3, 3, 32, 32)
    (coarse, fine), (found_coarse, found_fine) = source.eval()(images), model.eval()(images)
    assert torch.equal(found_coarse, coarse[:, [1, 0]])
    torch.testing.assert_close(found_fine, fine)  # sums over the coarse logits in another order
    assert model.started_from.endswith("for 3 classes and the coarse classes heart, lung in their new order")


@pytest.mark.parametrize(
    ("groups", "places", "words"),
    [
        (AIR | LUNG, [None, 0], "the coarse classes lung (new: air; left out: heart)"),
        ({"lung": ["b", "a"], "heart": ["c"]}, [0, 1], "3 classes and 2 coarse classes"),  # members are a set
        ({"lung": ["a"], "heart": ["c"]}, [None, 1], "the coarse classes heart (new: lung; left out: lung)"),
    ],
    ids=["another group", "members in another order", "a group of other findings"],
)
def test_a_coarse_class_is_its_name_and_its_findings(groups, places, words, tmp_path, monkeypatch):
    path, names = tmp_path / "w.pth", ["a", "b", "c"]
    weights = written(settings(names, LUNG | HEART), path)
    model, own = seeded(settings(names, groups, init_from=path), monkeypatch)
    found = model.state_dict()
    for g, place in enumerate(places):
        expected = coarse_row(own, g) if place is None else coarse_row(weights, place)
        assert same(coarse_row(found, g), expected), g
    assert same(body(found), body(weights)) and words in model.started_from


def test_with_no_coarse_class_of_its_own_left_the_coarse_classifier_is_new(tmp_path, monkeypatch):
    path, names = tmp_path / "w.pth", ["a", "b", "c"]
    weights = written(settings(names, LUNG | HEART), path)
    model, own = seeded(settings(names, {"x": ["a"], "y": ["b"]}, init_from=path), monkeypatch)
    found = model.state_dict()
    assert same(coarse_row(found, 0), coarse_row(own, 0)) and same(coarse_row(found, 1), coarse_row(own, 1))
    new = [name for name in found if name.startswith(f"{HEAD}coarse_classifier.")]
    assert new and all(torch.equal(found[name], own[name]) for name in new)
    last = f"{HEAD}fine_classifier.4.weight"
    assert torch.equal(found[last], weights[last])
    assert "none of the coarse classes (new: x, y; left out: lung, heart)" in model.started_from


def test_more_classes_and_more_coarse_classes_keep_what_there_was(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    weights = written(settings(["a", "b", "c"], LUNG | HEART), path)
    model, own = seeded(settings(["n", "c", "b", "a"], {"new": ["n"]} | HEART | LUNG, init_from=path), monkeypatch)
    found = model.state_dict()
    for g, place in enumerate([None, 1, 0]):
        expected = coarse_row(own, g, 3) if place is None else coarse_row(weights, place)
        assert same(coarse_row(found, g, 3), expected)
    for k, place in enumerate([None, 2, 1, 0]):
        source, row = (own, k) if place is None else (weights, place)
        for name in (f"{HEAD}fine_classifier.4.weight", f"{HEAD}fine_classifier.4.bias"):
            assert torch.equal(found[name][k], source[name][row])


def test_the_default_groups_are_those_of_the_same_classes(tmp_path, monkeypatch):
    """'Any finding' of other findings is another question."""
    path = tmp_path / "w.pth"
    weights = written(settings(["a", "b"], {}), path)
    model, _ = seeded(settings(["b", "a"], {}, init_from=path), monkeypatch)
    assert same(coarse_row(model.state_dict(), 0), coarse_row(weights, 0))
    more = create_model(settings(["a", "b", "c"], {}, init_from=path))
    assert "none of the coarse classes (new: any finding, no finding" in more.started_from


def test_a_file_without_names_is_taken_by_position_and_said_so(tmp_path):
    path = tmp_path / "bare.pth"
    weights = HybridMedNet(settings(["a", "b", "c"])).state_dict()
    torch.save(weights, path)
    model = create_model(settings(["x", "y", "z"], init_from=path))
    assert same(flat_row(model.state_dict(), 1), flat_row(weights, 1))
    assert model.started_from.endswith("for 3 classes, in the order of the file, which does not name its classes")


@pytest.mark.parametrize(
    "description",
    [
        {"class_names": ["a", "b"]},
        {"class_names": ["a", "a", "b"]},
        {"class_names": ["a", 7, "b"]},
        {"class_names": "abc"},
        {"config": {"MODEL": {"coarse_groups": [1]}}},
        {"config": {"MODEL": {"coarse_groups": {"lung": "a"}}}},
    ],
    ids=str,
)
def test_names_that_are_none_are_refused(description, tmp_path):
    path = tmp_path / "w.pth"
    written(settings(["a", "b", "c"], LUNG | HEART), path, **description)
    with pytest.raises(CheckpointError, match=r"^MODEL\.init_from: .*(in this file are|or is) damaged"):
        create_model(settings(["a", "b", "c"], HEART | LUNG, init_from=path))


def test_a_head_of_another_width_is_refused_and_nothing_is_mixed(tmp_path):
    path = tmp_path / "w.pth"
    written(settings(["a", "b", "c"]), path)
    with pytest.raises(WeightsError, match=r"of another shape"):
        create_model(settings(["c", "b", "d"], init_from=path, fusion_channels=24))
