"""Settings that a command follows with a saved model; the others are refused, not ignored."""

import pytest

import evaluate
import export
import predict
from configs.default_config import Config
from configs.errors import ConfigError
from configs.followed import COMMANDS, EVALUATE, EXPLAIN, EXPORT, INSTEAD, OF_EVERY_COMMAND, PREDICT, Followed
from configs.run_data import with_data_of_run
from explain import __main__ as explain
from tests.configs.settings import SETTINGS

KEYS = [".".join(path) for path in SETTINGS]
SILENT = {"nothing": (), "everything": tuple(INSTEAD), "preprocessing": ("preprocessing",)}
SCRIPTS = {evaluate: EVALUATE, explain: EXPLAIN, predict: PREDICT, export: EXPORT}


def example(key: str) -> str:
    """An override of a setting by its own default."""
    section, _, name = key.partition(".")
    value = Config()[section]
    for part in name.split("."):
        value = value[part]
    return f"{key}={'null' if value is None else str(value).lower() if isinstance(value, bool) else value}"


@pytest.mark.parametrize("silent", SILENT.values(), ids=SILENT)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.command)
def test_every_setting_is_followed_or_refused(command: Followed, silent):
    followed, refused = [], []
    for key in KEYS:
        named = Config.override_keys([example(key)])
        assert named == {example(key): (key,)}
        try:
            command.check(named, [silent])
        except ConfigError as error:
            assert str(error).startswith(f"--set {key}: no effect in {command.command}")
            refused.append(key)
        else:
            followed.append(key)
        assert command.of(named, silent) == ([example(key)] if key in followed else [])
    expected = {
        *command.keys,
        *OF_EVERY_COMMAND,
        *(key for fact in silent if fact in command.facts for key in INSTEAD[fact]),
    }
    assert set(followed) == expected and len(followed) + len(refused) == len(KEYS)
    assert not {"MODEL.backbone", "MODEL.dropout", "TRAIN.epochs", "LOSS.type", "CHECKPOINT.save_dir"} & set(followed)


def test_what_the_checkpoint_says_is_not_for_the_user():
    for command in COMMANDS:
        assert not {key for keys in INSTEAD.values() for key in keys} & set(command.keys)


@pytest.mark.parametrize(
    "override, key",
    [
        ("train.device=cpu", "TRAIN.device"),
        ("Training.device=cpu", "TRAIN.device"),
        ("TRAIN.device = cpu", "TRAIN.device"),
        ("model.backbone.feature_dim=8", "MODEL.fusion_channels"),
        ("MODEL.backbone.gradient_checkpointing.enabled=true", "MODEL.gradient_checkpointing.enabled"),
        ("MODEL.gradient_checkpointing={enabled: true}", "MODEL.gradient_checkpointing.enabled"),
        ("MODEL.coarse_groups={a: [b]}", "MODEL.coarse_groups"),
    ],
)
def test_settings_are_known_in_every_spelling(override, key):
    assert Config.override_keys([override]) == {override: (key,)}


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(ConfigError) as caught:
        Config.override_keys(["TRAIN.epoch=2", "nonsense", "TRAIN.device=cpu", "DATA.num_workers=-1"])
    messages = str(caught.value)
    assert messages.count("\n") == 3 and all(
        words in messages for words in ("TRAIN.epoch:", "'nonsense'", "DATA.num_workers: -1")
    )
    named = Config.override_keys(["MODEL.dropout=0.1", "train.epochs=2", "TRAIN.device=cpu"])
    with pytest.raises(ConfigError, match=r"--set MODEL\.dropout, TRAIN\.epochs: no effect in evaluate\.py"):
        EVALUATE.check(named, [()])


def test_one_of_several_files_is_enough():
    named = Config.override_keys(["DATA.class_names=[a, b]"])
    PREDICT.check(named, [(), ("class names",)])
    with pytest.raises(ConfigError, match=r"DATA\.class_names"):
        PREDICT.check(named, [(), ("preprocessing",)])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_help_names_them(script, capsys):
    with pytest.raises(SystemExit):
        script.parse_arguments(["--help"])
    metadata = capsys.readouterr().out
    followed = SCRIPTS[script]
    assert all(key in metadata for key in [*followed.keys, *(key for fact in followed.facts for key in INSTEAD[fact])])
    assert "TRAIN.epochs" not in metadata


# ---- where the data are


def saved(*overrides: str) -> Config:
    return Config.from_overrides(["DATA.data_dir=/named/in/the/file", *overrides]).complete()


def test_overrides_are_not_checked_against_the_defaults(tmp_path):
    """A window is for volumes: fine for a checkpoint of volumes, whatever the defaults and the config.yaml are for."""
    (tmp_path / "config.yaml").write_text("DATA: {data_dir: /the/runs}")
    config = saved("DATA.image_size=[8, 16, 16]", "DATA.window=[0, 100]")
    found = with_data_of_run(config, tmp_path, overrides=["DATA.window=[0, 100]"])
    assert found.DATA.data_dir == "/the/runs" and found.DATA.window == (0, 100)


@pytest.mark.parametrize(
    "overrides, data, expected",
    [
        ([], None, ("/the/runs", "/the/runs.csv", "nih")),
        (["data.data_dir=/mine"], None, ("/mine", "/the/runs.csv", "nih")),
        (["DATA.format=auto", "DATA.labels_file=null"], None, ("/the/runs", None, "auto")),
        ([], "/asked", ("/asked", None, "auto")),
        (["DATA.format=csv"], "/asked", ("/asked", None, "csv")),
    ],
    ids=str,
)
def test_the_user_says_where_or_the_config_beside(tmp_path, overrides, data, expected):
    (tmp_path / "config.yaml").write_text("DATA: {data_dir: /the/runs, labels_file: /the/runs.csv, format: nih}")
    found = with_data_of_run(saved(*overrides), tmp_path, data, overrides=overrides).DATA
    assert (found.data_dir, found.labels_file, found.format) == expected


def test_nobody_says_where(tmp_path):
    with pytest.raises(ConfigError, match="name them by --data"):
        with_data_of_run(saved(), tmp_path)
    (tmp_path / "config.yaml").write_text("DATA: {data_dir: null}")
    assert with_data_of_run(saved(), tmp_path).DATA.data_dir is None, "the sample data"
