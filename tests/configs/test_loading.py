"""YAML files in both spellings, `base`, overrides, and presets; every problem named, all of them at once."""

import re
import shlex
from pathlib import Path

import pytest
import timm

from configs.default_config import Config
from configs.errors import ConfigError
from models import list_backbones

ROOT = Path(__file__).resolve().parents[2]
PRESETS = sorted((ROOT / "configs").glob("*.y*ml"))


@pytest.fixture
def load(tmp_path):
    """load(text, *overrides): the Config of a file with this text."""

    def load_text(text: str, *overrides: str) -> Config:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return Config.from_yaml(path, overrides)

    return load_text


@pytest.fixture
def problems(load):
    """problems(text, *overrides): the lines of the error, the heading apart."""

    def problem_lines(text: str, *overrides: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        assert caught.value.exit_code == 2
        return [line.strip() for line in str(caught.value).splitlines()[1:]]

    return problem_lines


FLAT = """
MODEL:
  {backbone: resnet18, pretrained: false, fusion_channels: 128, gradient_checkpointing: {enabled: false, segments: 4}}
TRAIN: {batch_size: 4, epochs: 2}
"""
NESTED = """
model:
  backbone:
    type: resnet18
    pretrained: false
    feature_dim: 128
    gradient_checkpointing:
      enabled: false
      segments: 4
training:
  batch_size: 4
  epochs: 2
"""


def test_both_spellings_give_equal_configs(load):
    flat, nested = load(FLAT), load(NESTED)
    assert flat == nested
    assert (flat.MODEL.backbone, flat.MODEL.pretrained, flat.MODEL.fusion_channels) == ("resnet18", False, 128)
    assert (flat.TRAIN.batch_size, flat.TRAIN.epochs) == (4, 2)


@pytest.mark.parametrize("section", Config.model_fields)
@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
def test_section_names_in_either_case(load, section, case):
    key, default = next(iter(Config()[section].items()))
    assert load(f"{case(section)}: {{}}") == Config()
    other = {"name": "x", "batch_size": 7, "data_dir": "x", "type": "focal", "save_dir": "x", "log_dir": "x"}[key]
    config = load(f"{case(section)}: {{{key}: {other}}}")
    assert config[section][key] == other != default


def test_a_section_in_two_spellings_is_joined(load, problems):
    config = load("TRAIN: {epochs: 2}\ntraining: {batch_size: 4}\n")
    assert (config.TRAIN.epochs, config.TRAIN.batch_size) == (2, 4)
    (problem,) = problems("TRAIN: {epochs: 2}\ntrain: {epochs: 3}\n")
    assert problem == "TRAIN.epochs is given twice: 2 and 3"


def test_a_setting_in_both_spellings_must_agree(load, problems):
    (problem,) = problems("MODEL: {fusion_channels: 64, backbone: {feature_dim: 128}}")
    assert "MODEL.fusion_channels" in problem and "MODEL.backbone.feature_dim" in problem
    assert "64" in problem and "128" in problem
    assert load("MODEL: {fusion_channels: 64, backbone: {feature_dim: 64}}").MODEL.fusion_channels == 64


def test_an_unknown_key_of_the_nested_spelling_is_named(problems):
    (problem,) = problems("model: {backbone: {typ: resnet18}}")
    assert problem == "unknown setting MODEL.backbone.typ: did you mean 'type'?"


@pytest.mark.parametrize("text", ["", "# nothing\n", "TRAIN:\n", "TRAIN: {}\n"])
def test_an_empty_file_means_the_defaults(load, text):
    assert load(text) == Config()


def test_a_byte_order_mark_and_chinese_comments_are_no_problem(tmp_path):
    path = tmp_path / "配置.yaml"
    path.write_text("# 快速开始\nLOGGING: {run_name: 胸片}\n", encoding="utf-8-sig")
    assert Config.from_yaml(path).LOGGING.run_name == "胸片"


# ---- values


@pytest.mark.parametrize(
    "text, number", [("1e-3", 1e-3), ("1E-3", 1e-3), ("1.0e-3", 1e-3), ("'2e-4'", 2e-4), ("1", 1.0)]
)
def test_numbers_that_yaml_reads_as_text_are_coerced(load, text, number):
    """PyYAML gives the string '1e-3'."""
    value = load(f"TRAIN: {{learning_rate: {text}}}").TRAIN.learning_rate
    assert value == number and isinstance(value, float)


@pytest.mark.parametrize("text", ["true", "yes", "off"])
@pytest.mark.parametrize("key", ["TRAIN.epochs", "TRAIN.learning_rate", "MODEL.in_channels", "MODEL.fusion_stride"])
def test_booleans_are_refused_for_numbers(problems, key, text):
    section, name = key.split(".")
    (problem,) = problems(f"{section}: {{{name}: {text}}}")
    assert problem.startswith(f"{key}: ") and "not allowed" in problem


@pytest.mark.parametrize("text", ["012", "-012", "0_12", "00"])
def test_numbers_with_a_leading_zero_are_refused(load, text):
    """YAML 1.1 would read 012 as 10."""
    with pytest.raises(ConfigError, match=rf"'{text}' begins with 0"):
        load(f"TRAIN: {{epochs: {text}}}")
    with pytest.raises(ConfigError, match=rf"'{text}' begins with 0"):
        load("", f"TRAIN.epochs={text}")


def test_a_leading_zero_in_quotes_is_text(load):
    assert load("LOGGING: {run_name: '012'}").LOGGING.run_name == "012"
    assert load("TRAIN: {seed: 0}").TRAIN.seed == 0


@pytest.mark.parametrize("text", ["1:30", "224:224"])
def test_base_60_numbers_are_refused(load, text):
    """YAML 1.1 would read 1:30 as 90."""
    with pytest.raises(ConfigError):
        load(f"TRAIN: {{batch_size: {text}}}")


@pytest.mark.parametrize("text", ["TRAIN: {epochs: 2, epochs: 3}", "TRAIN: {epochs: 2}\nTRAIN: {seed: 3}"])
def test_a_key_given_twice_is_refused(load, text):
    with pytest.raises(ConfigError, match=r"'(epochs|TRAIN)' is given twice.*line"):
        load(text)


def test_yaml_merge_keys_work(load):
    text = "TRAIN: &common {epochs: 2}\ntraining:\n  <<: *common\n  batch_size: 4\n"
    assert load(text).TRAIN.batch_size == 4


@pytest.mark.parametrize(
    "text",
    [
        "TRAIN: [unclosed",
        "TRAIN: !!python/object/apply:os.system ['true']",
        "TRAIN: {[1, 2]: 3}",
        "TRAIN: {~: 3}",
        "a: &a [*a]",
        "TRAIN: {seed: 2026-13-45}",
        "\x00",
        "[" * 3000,
    ],
    ids=lambda text: text[:24],
)
def test_broken_yaml_is_a_config_error_that_names_the_file(load, text):
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load(text)


def test_a_file_in_another_encoding_is_a_config_error(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes("LOGGING: {run_name: Lünge}".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml.*cannot be read"):
        Config.from_yaml(path)


# ---- problems


def test_all_problems_of_file_and_overrides_are_told_at_once(problems):
    found = problems(
        "TRAIN: {batch_size: 0, lr_scheduler: cosin, epoch: 3}\n"
        "MODLE: {backbone: resnet18}\n"
        "model: {backbone: {typ: resnet18, feature_dim: -1}}\n"
        "DATA: {train_split: 0.9}\n"
        "LOGGING: 5\n",
        "MODEL.num_head=4",
        "DATA.mean=[0.5, grey, 0.5]",
        "nonsense",
    )
    expected = [
        r"TRAIN\.batch_size: 0 is not allowed: a whole number",
        r"TRAIN\.lr_scheduler: 'cosin' .*did you mean 'cosine'\?",
        r"unknown setting TRAIN\.epoch: did you mean 'epochs'\?",
        r"unknown setting MODLE: ",
        r"unknown setting MODEL\.backbone\.typ: did you mean 'type'\?",
        r"MODEL\.fusion_channels: -1 is not allowed",
        r"DATA\.train_split \+ val_split \+ test_split is 1\.2",
        r"LOGGING: 5 is not allowed: a mapping",
        r"unknown setting MODEL\.num_head: did you mean 'num_heads'\?",
        r"DATA\.mean: 'grey' is not allowed: a list, each a number",
        r"override 'nonsense': write SECTION\.key=value",
    ]
    for pattern in expected:
        assert any(re.match(pattern, line) for line in found), f"{pattern} is missing in {found}"
    assert len(found) == len(expected)


def test_an_override_that_is_no_yaml_does_not_hide_other_problems(load):
    with pytest.raises(ConfigError) as caught:
        load("TRAIN: {epoch: 3}", "DATA.mean=[0.5")
    assert "DATA.mean=[0.5" in str(caught.value) and "TRAIN.epoch" in str(caught.value)


@pytest.mark.parametrize(
    "wrong, meant", [("MODLE", "MODEL"), ("modle", "MODEL"), ("dat", "DATA"), ("Loging", "LOGGING")]
)
def test_a_misspelt_section_is_named_with_its_neighbour(problems, wrong, meant):
    (problem,) = problems(f"{wrong}: {{}}")
    assert re.search(f"{wrong}: did you mean '{meant}'", problem, re.IGNORECASE)


@pytest.mark.parametrize(
    "text, words",
    [
        ("- a\n- b", "mapping of sections"),
        ("just text", "mapping of sections"),
        ("TRAIN: [1, 2]", "TRAIN: [1, 2] is not allowed"),
        ("base: [a.yaml]", "base: ['a.yaml'] is not allowed"),
        ("MODEL: {backbone: [resnet18]}", "MODEL.backbone: ['resnet18'] is not allowed: text"),
        ("MODEL: {gradient_checkpointing: true}", "MODEL.gradient_checkpointing: "),
        ("MODEL: {gradient_checkpointing: {enable: true}}", "did you mean 'enabled'"),
        ("MODEL: {coarse_groups: {a: b}}", "MODEL.coarse_groups: 'b' is not allowed"),
        ("TRAIN: {device: 3}", "TRAIN.device: 3 is not allowed: text"),
    ],
)
def test_values_of_the_wrong_kind(problems, text, words):
    (problem,) = problems(text)
    assert words in problem and "Value error" not in problem  # pydantic's own words


# ---- base


def write(folder: Path, **texts: str) -> Path:
    """Files name.yaml with these texts; the path of the first."""
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / f"{next(iter(texts))}.yaml"


def test_base_is_inherited_key_by_key(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path, grandparent="TRAIN: {epochs: 1, batch_size: 1, seed: 1}\nDATA: {mean: [0.1, 0.2, 0.3]}")
    write(tmp_path / "sub", parent="base: ../grandparent.yaml\ntraining: {batch_size: 2, seed: 2}")
    path = write(tmp_path, child="base: sub/parent.yaml\ntrain: {seed: 3}\nDATA: {mean: [0.5]}")
    config = Config.from_yaml(path, ["TRAIN.momentum=0.5"])
    assert (config.TRAIN.epochs, config.TRAIN.batch_size, config.TRAIN.seed, config.TRAIN.momentum) == (1, 2, 3, 0.5)
    assert config.DATA.mean == [0.5]


def test_nested_spelling_over_a_flat_base(tmp_path):
    path = write(
        tmp_path,
        child="base: parent.yaml\nmodel: {backbone: {pretrained: false}}",
        parent="MODEL: {backbone: resnet50, dropout: 0.1}",
    )
    model = Config.from_yaml(path).MODEL
    assert (model.backbone, model.pretrained, model.dropout) == ("resnet50", False, 0.1)


def test_coarse_groups_replace_those_of_the_base(tmp_path):
    path = write(tmp_path, child="base: p.yaml\nMODEL: {coarse_groups: {b: [y]}}", p="MODEL: {coarse_groups: {a: [x]}}")
    assert Config.from_yaml(path).MODEL.coarse_groups == {"b": ["y"]}


@pytest.mark.parametrize(
    "texts, chain",
    [
        ({"a": "base: a.yaml"}, "a.yaml → a.yaml"),
        ({"a": "base: b.yaml", "b": "base: c.yaml", "c": "base: a.yaml"}, "a.yaml → b.yaml → c.yaml → a.yaml"),
    ],
    ids=["itself", "three"],
)
def test_a_circle_is_shown(tmp_path, texts, chain):
    with pytest.raises(ConfigError, match=f"circle: {re.escape(chain)}"):
        Config.from_yaml(write(tmp_path, **texts))


def test_a_missing_file_is_named_with_what_there_is(tmp_path):
    write(tmp_path, quickstart="")
    with pytest.raises(ConfigError, match=r"quikstart\.yaml' does not exist.*quickstart\.yaml"):
        Config.from_yaml(tmp_path / "quikstart.yaml")
    with pytest.raises(ConfigError, match=r"none\.yaml' does not exist"):
        Config.from_yaml(write(tmp_path, child="base: none.yaml"))
    with pytest.raises(ConfigError, match="does not exist"):
        Config.from_yaml(tmp_path / "no_folder" / "a.yaml")


def test_problems_of_the_base_are_told_too(tmp_path):
    path = write(tmp_path, child="base: parent.yaml\nTRAIN: {epoch: 1}", parent="TRAIN: {batchsize: 1}")
    with pytest.raises(ConfigError) as caught:
        Config.from_yaml(path)
    assert "TRAIN.epoch:" in str(caught.value) and "TRAIN.batchsize:" in str(caught.value)


# ---- overrides


@pytest.mark.parametrize(
    "override, section, key, value",
    [
        ("TRAIN.batch_size=16", "TRAIN", "batch_size", 16),
        ("train.batch_size = 16", "TRAIN", "batch_size", 16),
        ("training.batch_size=16", "TRAIN", "batch_size", 16),
        ("TRAIN.learning_rate=1e-3", "TRAIN", "learning_rate", 1e-3),
        ("TRAIN.gradient_clip_norm=null", "TRAIN", "gradient_clip_norm", None),
        ("TRAIN.gradient_clip_norm=", "TRAIN", "gradient_clip_norm", None),
        ("DATA.mean=[0.5, 0.25, 1e-1]", "DATA", "mean", [0.5, 0.25, 0.1]),
        ("DATA.class_names=[a b, c]", "DATA", "class_names", ["a b", "c"]),
        ("MODEL.input_size=[64, 96]", "MODEL", "input_size", (64, 96)),
        ("MODEL.coarse_groups={a: [x, y]}", "MODEL", "coarse_groups", {"a": ["x", "y"]}),
        ("DATA.data_dir=/runs/lr=0.1/x=y", "DATA", "data_dir", "/runs/lr=0.1/x=y"),
        ("DATA.data_dir=C:\\data\\nih", "DATA", "data_dir", "C:\\data\\nih"),
        ("MODEL.pretrained=/w/a.b-c.pth", "MODEL", "pretrained", "/w/a.b-c.pth"),
        ("MODEL.pretrained=false", "MODEL", "pretrained", False),
        ("MODEL.backbone.type=resnet18", "MODEL", "backbone", "resnet18"),
        ("model.backbone.feature_dim=64", "MODEL", "fusion_channels", 64),
        ("LOGGING.run_name='2026'", "LOGGING", "run_name", "2026"),
    ],
)
def test_an_override_sets_one_key(override, section, key, value):
    config, expected = Config.from_overrides([override]), Config()
    expected[section][key] = value
    assert config == expected and type(config[section][key]) is type(value)


def test_later_overrides_win(load):
    config = load("TRAIN: {epochs: 1}", "TRAIN.epochs=2", "train.epochs=3")
    assert config.TRAIN.epochs == 3


@pytest.mark.parametrize("override", ["epochs=3", "TRAIN.epochs", "=3", "TRAIN.=3", ".epochs=3", "TRAIN..epochs=3", ""])
def test_an_override_of_the_wrong_form_says_how_to_write_it(override):
    with pytest.raises(ConfigError, match=re.escape(f"override '{override}': write SECTION.key=value")):
        Config.from_overrides([override])


# ---- presets


@pytest.mark.skipif(not PRESETS, reason="configs/ has no presets")
@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.name)
class TestPresets:
    def test_loads(self, path):
        config = Config.from_yaml(path)
        backbone = config.MODEL.backbone
        assert backbone in list_backbones() or timm.is_model(backbone.removeprefix("timm/"))
        assert config.model_dump() != Config().model_dump() or path.stem == "default"

    def test_begins_with_purpose_needs_and_the_exact_command(self, path):
        lines = path.read_text(encoding="utf-8").splitlines()
        comment = [line.lstrip("# ").strip() for line in lines[: next(i for i, x in enumerate(lines) if x[:1] != "#")]]
        assert len(comment) >= 3, "purpose, needs, command"
        assert any(line.startswith("Needs") for line in comment)
        commands = [shlex.split(line) for line in comment if line.startswith("python train.py")]
        assert any(words[2:4] == ["--config", f"configs/{path.name}"] for words in commands), comment

    def test_its_command_loads(self, path):
        """Overrides that the comment shows are settings that exist."""
        for line in re.findall(r"^# *python train\.py (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE):
            words = shlex.split(line, comments=True)
            assert Config.from_yaml(path, [word for word in words if "=" in word and not word.startswith("-")])


def test_presets_named_in_messages_exist():
    """An error that sends users to a preset must not send them nowhere."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "models").rglob("*.py")]
    named = {name for text in texts for name in re.findall(r"configs/\w+\.yaml", text)}
    assert named and all((ROOT / name).is_file() for name in named)
