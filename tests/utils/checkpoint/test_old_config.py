"""Files of the previous release with a pickled Config: read safely, as today's Config, with a warning."""

import argparse
import copy
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from configs import default_config
from configs.default_config import Config
from configs.previous_release import PATHS
from utils.checkpoint import read_file
from utils.checkpoint.old_config import allow_old_config

ROOT = Path(__file__).resolve().parents[3]
REAL = ROOT.parent / "shared" / "legacy" / "old_config_only.pth"
DEFAULTS = "what the file does not hold has the current default"


class PlainConfig:
    """What the previous release's was: an object whose settings are attributes of its class, or its own."""

    def __getstate__(self):
        return vars(self).get("whole_state", vars(self)) or None


PlainConfig.__module__, PlainConfig.__qualname__, PlainConfig.__name__ = "configs.default_config", "Config", "Config"


@contextmanager
def previous_release() -> Iterator[None]:
    """Pickling finds the old class where it was."""
    default_config.Config = PlainConfig
    try:
        yield
    finally:
        default_config.Config = Config


def write_old(path: Path, **attributes) -> Path:
    """A file with a Config that has these attributes of its own."""
    config = PlainConfig()
    vars(config).update(attributes)
    with previous_release():
        torch.save({"epoch": 3, "model_state_dict": {"w": torch.zeros(2)}, "config": config}, path)
    return path


@pytest.fixture(autouse=True)
def models_are_imported() -> Iterator[None]:
    before = torch.serialization.get_safe_globals()
    allow_old_config()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


def read(path: Path) -> tuple[Config, list[str]]:
    """The Config of a file, by torch.load as users call it, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        content = torch.load(path)
    assert {warning.category for warning in caught} <= {UserWarning}
    assert content.keys() >= {"epoch", "model_state_dict", "config"}
    return content["config"], [str(warning.message) for warning in caught]


@pytest.mark.skipif(not REAL.is_file(), reason="no ../shared/legacy here: a file of the previous release")
def test_a_real_file_gives_todays_defaults_and_says_so():
    config, messages = read(REAL)
    assert type(config) is Config and config == Config()
    assert len(messages) == 1 and DEFAULTS in messages[0]
    config.MODEL.backbone = "resnet50"  # it is as good as any
    assert copy.deepcopy(config) == config and pickle.loads(pickle.dumps(config)) == config


@pytest.mark.skipif(not REAL.is_file(), reason="no ../shared/legacy here: a file of the previous release")
def test_importing_models_is_enough():
    code = f"import models, torch; print(torch.load({str(REAL)!r})['config'].MODEL.backbone)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == f"{Config().MODEL.backbone}\n", done.stderr
    assert done.stderr.count(DEFAULTS) == 1


def test_importing_utils_changes_nothing_in_torch():
    code = (
        "import torch, utils.checkpoint, utils.checkpoint.files, utils.checkpoint.recovery, utils.torch_private; "
        "print([name for name in torch.serialization.get_safe_globals() if 'onfig' in str(name)])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("already", [[], [argparse.Namespace]], ids=["nothing", "a class that is used"])
def test_reading_a_file_leaves_torchs_list_as_it_was(already, tmp_path):
    path = write_old(tmp_path / "old.pth")
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(already)
    with pytest.warns(UserWarning, match=DEFAULTS):
        assert read_file(path)["config"] == Config()
    assert set(torch.serialization.get_safe_globals()) == set(already)
    with pytest.raises(pickle.UnpicklingError, match="default_config"):
        torch.load(path)


def test_the_files_written_here_are_like_the_real_one(tmp_path):
    path = write_old(tmp_path / "old.pth")
    config, messages = read(path)
    assert config == Config() and len(messages) == 1 and DEFAULTS in messages[0]
    with zipfile.ZipFile(path) as archive:
        stored = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    assert b"cconfigs.default_config\nConfig\n" in stored and b"pydantic" not in stored


def test_settings_that_the_file_holds_are_taken_over(tmp_path):
    model = {"backbone": "resnet50", "num_classes": 5, "gradient_checkpointing": {"enabled": True}}
    config, messages = read(write_old(tmp_path / "old.pth", MODEL=model, TRAIN={"learning_rate": 0.01}))
    assert type(config) is Config and len(messages) == 1
    assert config.MODEL.backbone == "resnet50" and config.MODEL.num_classes == 5
    assert config.MODEL.gradient_checkpointing.enabled is True and config.TRAIN.learning_rate == 0.01
    assert config.DATA == Config().DATA and config.MODEL.dropout == Config().MODEL.dropout


def test_what_is_unknown_or_not_allowed_is_named_and_keeps_its_default(tmp_path):
    odd = {"num_classes": -1, "__class__": "x", "nbackbone": "y", "dropout": torch.zeros(2), "hierarchical": True, 7: 1}
    state = {"MODEL": odd, "SCHEDULER": {"gamma": 1}, "TRAIN": [1, 2], "__dict__": {}}
    config, messages = read(write_old(tmp_path / "old.pth", **state))
    assert config.MODEL.hierarchical is True
    config.MODEL.hierarchical = False
    assert config.model_dump() == Config().model_dump()
    names = "MODEL.num_classes, MODEL.__class__, MODEL.nbackbone, MODEL.dropout, MODEL.int, SCHEDULER, TRAIN, __dict__"
    assert len(messages) == 2 and messages[1].endswith(names)


def test_a_state_that_is_no_mapping_is_told(tmp_path):
    config, messages = read(write_old(tmp_path / "old.pth", whole_state=[1, 2]))
    assert config == Config() and messages[1].endswith("not a mapping but list")


PATH_WORDS = ("dir", "file", "pretrained", "init_from", "run_name")


def test_no_path_is_taken_over(tmp_path):
    """By the names of all settings: what would be opened, fetched or written is not for a file to say."""
    looks_like_path = {
        f"{name}.{key}"
        for name, section in Config().items()
        for key in section
        if any(word in key for word in PATH_WORDS)
    }
    assert looks_like_path == PATHS
    state: dict[str, dict] = {}
    for path in PATHS:
        section, _, key = path.partition(".")
        state.setdefault(section, {})[key] = "/etc/passwd"
    config, messages = read(write_old(tmp_path / "old.pth", **state))
    assert config == Config() and all(path in messages[1] for path in PATHS)


def test_a_state_that_looks_like_todays_is_not_trusted(tmp_path):
    """Pydantic's own pickles are not checked when they are read: torch.load must not let one in by this door."""
    forged = {"__dict__": {"MODEL": {"pretrained": "/etc/passwd"}}, "__pydantic_fields_set__": {"MODEL"}}
    forged |= {"__pydantic_extra__": None, "__pydantic_private__": None}
    config, messages = read(write_old(tmp_path / "old.pth", **forged))
    assert config == Config() and "__dict__" in messages[1]


def test_other_objects_are_refused_as_before(tmp_path):
    torch.save({"config": Config()}, tmp_path / "today.pth")
    with pytest.warns(UserWarning, match=DEFAULTS), pytest.raises(pickle.UnpicklingError, match="default_config"):
        torch.load(tmp_path / "today.pth")
    write_old(tmp_path / "path.pth", DATA={"data_dir": Path("a")})
    with pytest.warns(UserWarning, match=DEFAULTS), pytest.raises(pickle.UnpicklingError, match="pathlib"):
        torch.load(tmp_path / "path.pth")


def test_todays_configs_are_pickled_and_copied_as_ever():
    config = Config()
    config.MODEL.backbone, config.DATA.data_dir, config.MODEL.pretrained = "swin_tiny", "/data", "/weights.pth"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copies = [pickle.loads(pickle.dumps(config, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
        copies += [copy.deepcopy(config), copy.copy(config), config.model_copy(deep=True)]
    for copied in copies:
        assert type(copied) is Config and copied == config and copied.MODEL.backbone == "swin_tiny"
