"""MODEL.init_from of a network of studies: any image checkpoint, and training begins as the image alone."""

import torch

from configs.default_config import Config
from models import HybridMedNet, create_model
from utils.checkpoint import save_checkpoint

SMALL = {"backbone": "timm/test_resnet", "pretrained": False, "fpn_channels": 16, "fusion_channels": 16}
KINDS, COLUMNS = ["frontal", "lateral"], {"age": "numeric", "sex": 2}
STUDY = {"views": {"aggregator": "attention", "width": 8}, "view_kinds": KINDS}
STUDY |= {"table": {"fusion": "gated", "width": 8}, "table_columns": COLUMNS}
NEW = "; what joins views and adds the table is new"


def settings(**model) -> Config:
    config = Config()
    for key, value in {**SMALL, "num_classes": 3, **model}.items():
        config.MODEL[key] = value
    config.DATA.image_size = 32
    return config


def saved(tmp_path, config: Config) -> tuple[str, HybridMedNet]:
    """A file with its config, as training writes it, of a network without any zero parameter."""
    torch.manual_seed(0)
    model = HybridMedNet(config)
    for parameter in model.parameters():
        parameter.data += 0.01
    path = tmp_path / "saved.pth"
    save_checkpoint({"model": model.state_dict(), "config": config.model_dump(mode="json")}, path)
    return str(path), model.eval()


def started(path: str, **model) -> HybridMedNet:
    torch.manual_seed(1)
    return create_model(settings(init_from=path, **model)).eval()


def test_an_image_checkpoint_gives_all_but_what_joins_studies(tmp_path):
    path, image = saved(tmp_path, settings())
    study = started(path, **STUDY)
    assert study.started_from == f"weights of '{path}' with its head for 3 classes{NEW}"
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(study(x), image(x))
    assert study.classifier.study.adapter.inner.weight.abs().sum() > 0


def test_an_image_checkpoint_of_other_classes(tmp_path):
    path, image = saved(tmp_path, settings())
    study = started(path, **{**STUDY, "num_classes": 5})
    assert "but for its head" in study.started_from and study.started_from.endswith(NEW)
    assert torch.equal(next(study.backbone.parameters()), next(image.backbone.parameters()))


def test_a_study_checkpoint_is_taken_whole(tmp_path):
    path, before = saved(tmp_path, settings(**STUDY))
    study = started(path, **STUDY)
    assert study.started_from == f"weights of '{path}' with its head for 3 classes"
    assert all(torch.equal(study.state_dict()[name], tensor) for name, tensor in before.state_dict().items())
    other_classes = started(path, **{**STUDY, "num_classes": 5})
    assert NEW not in other_classes.started_from
    name = "classifier.study.adapter.outer.weight"
    assert torch.equal(other_classes.state_dict()[name], before.state_dict()[name])


def test_weights_of_other_columns_are_not_taken_for_these(tmp_path):
    """They fit by their shapes: the age's would be the weight's, and the order of columns counts."""
    path, _ = saved(tmp_path, settings(**STUDY))
    for columns in ({"weight": "numeric", "sex": 2}, {"sex": 2, "age": "numeric"}):
        study = started(path, **{**STUDY, "table_columns": columns})
        assert f"{NEW}, as the file's MODEL.table_columns is " in study.started_from
        assert study.classifier.study.fusion.outer.weight.eq(0).all()
    study = started(path, **{**STUDY, "view_kinds": ["lateral", "frontal"]})
    assert f"{NEW}, as the file's MODEL.view_kinds is " in study.started_from


def test_another_way_to_join_is_new(tmp_path):
    path, _ = saved(tmp_path, settings(**STUDY))
    study = started(path, **{**STUDY, "views": {"aggregator": "max", "width": 8}})
    assert study.started_from.endswith(f"{NEW}, as the file's is of another kind")


def test_separate_backbones_all_begin_as_the_files(tmp_path):
    path, image = saved(tmp_path, settings())
    separate = {**STUDY, "views": {"aggregator": "mean", "width": 8, "backbones": "separate"}}
    study = started(path, **separate)
    first, second = study.backbone.state_dict(), study.view_backbones[0].state_dict()
    assert all(torch.equal(first[name], tensor) for name, tensor in image.backbone.state_dict().items())
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
    for parameter in study.view_backbones.parameters():
        parameter.data += 1.0
    path = tmp_path / "separate.pth"
    config = settings(**separate).model_dump(mode="json")
    save_checkpoint({"model": study.state_dict(), "config": config}, path)
    again = started(str(path), **separate)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in study.state_dict().items())
