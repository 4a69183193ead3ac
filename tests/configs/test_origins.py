"""Where each setting is from, and the YAML that says so."""

import yaml

from configs.default_config import Config
from configs.origins import DEFAULT, DERIVED, OF_DATA, annotated_yaml, leaves, origins, resolved


def files(tmp_path) -> str:
    (tmp_path / "base.yaml").write_text("TRAIN: {epochs: 7, batch_size: 4}\nmodel: {backbone: {type: resnet18}}\n")
    over = tmp_path / "over.yaml"
    over.write_text("base: base.yaml\nTRAIN: {batch_size: 8}\nDATA: {labels_file: 'a # b\u202e.csv'}\n")
    return str(over)


OVERRIDES = {
    "train.optimizer=sgd": "--set",
    "MODEL.gradient_checkpointing={enabled: true}": "--set",
    "TRAIN.seed=3": "--seed",
}


def test_each_setting_has_the_last_that_said_it(tmp_path):
    over = files(tmp_path)
    found = origins(over, OVERRIDES)
    assert {key: where for key, where in found.items() if where != DEFAULT} == {
        "TRAIN.epochs": str(tmp_path / "base.yaml"),
        "MODEL.backbone": str(tmp_path / "base.yaml"),
        "TRAIN.batch_size": over,
        "DATA.labels_file": over,
        "TRAIN.optimizer": "--set",
        "MODEL.gradient_checkpointing.enabled": "--set",
        "TRAIN.seed": "--seed",
    }
    assert {*found} == {*leaves(Config())}


def test_the_yaml_is_read_back_to_the_same_settings(tmp_path):
    config = Config.from_yaml(files(tmp_path), OVERRIDES)
    text = annotated_yaml(config, origins(files(tmp_path), OVERRIDES))
    (tmp_path / "again.yaml").write_text(text, encoding="utf-8")
    assert Config.from_yaml(tmp_path / "again.yaml") == config
    assert yaml.safe_load(text) == config.model_dump(mode="json")
    assert f"  batch_size: 8  # {tmp_path / 'over.yaml'}\n" in text and "  seed: 3  # --seed\n" in text
    assert "\u202e" not in text


def test_what_is_null_and_follows_from_other_settings_is_written_out():
    config = Config.from_overrides(["DATA.image_size=64", "TRAIN.epochs=3"])
    completed, of = resolved(config, origins(None, {"DATA.image_size=64": "--set", "TRAIN.epochs=3": "--set"}))
    assert completed.MODEL.input_size == (64, 64) and of["MODEL.input_size"] == DERIVED
    assert completed.TRAIN.warmup_epochs is not None and of["TRAIN.warmup_epochs"] == DERIVED
    assert completed.MODEL.num_classes is None and of["MODEL.num_classes"] == DEFAULT, "the data decide"
    assert completed.complete() == config.complete()


def test_what_the_data_decided_is_said_to_be_theirs():
    config = Config.from_overrides(["TRAIN.epochs=3"])
    prepared = config.resolve(["a", "b", "c"])
    completed, of = resolved(config, origins(None, {}), prepared)
    assert completed == prepared
    assert {of[key] for key in ("MODEL.num_classes", "DATA.class_names", "LOSS.type", "MODEL.task")} == {OF_DATA}
    assert of["TRAIN.warmup_epochs"] == DERIVED and of["TRAIN.batch_size"] == DEFAULT
