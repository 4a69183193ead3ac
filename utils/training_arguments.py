"""What commands that train have in common: --config, --set, and shortcuts for settings that are often set."""

from __future__ import annotations

import argparse
import json

from configs.errors import ConfigError
from utils.arguments import Values, override
from utils.completion import of_settings, of_yaml_files

# Shortcut → (the settings, which get the same value; what is shown for it).
SHORTCUTS = {
    "--epochs": (("TRAIN.epochs",), "N"),
    "--batch-size": (("TRAIN.batch_size",), "N"),
    "--lr": (("TRAIN.learning_rate",), "X"),
    "--seed": (("TRAIN.seed",), "N"),
    "--device": (("TRAIN.device",), "DEVICE"),
    "--backbone": (("MODEL.backbone",), "NAME"),
    "--data": (("DATA.data_dir",), "DIR"),
    "--labels": (("DATA.labels_file",), "FILE"),
    "--image-size": (("DATA.image_size", "MODEL.input_size"), "PX"),
    "--num-workers": (("DATA.num_workers",), "N"),
    "--save-dir": (("CHECKPOINT.save_dir",), "DIR"),
    "--run-name": (("LOGGING.run_name",), "NAME"),
}
_LOG_FORMAT = ("LOGGING.format",)  # of --log-format, which every script has
_TEXTS = (
    "TRAIN.device",
    "MODEL.backbone",
    "DATA.data_dir",
    "DATA.labels_file",
    "CHECKPOINT.save_dir",
    "LOGGING.run_name",
)


def add_training_settings(parser: argparse.ArgumentParser) -> None:
    """--config, --set and the shortcuts; what is given of the two latter, `given_overrides` puts together."""
    file = parser.add_argument(
        "--config", metavar="FILE", help="YAML file; without it configs/default_config.py's defaults"
    )
    file.completer = of_yaml_files  # type: ignore[attr-defined]
    parser.add_argument(
        "--set",
        metavar="SECTION.key=value",
        action=Values,
        takes=override,
        completer=of_settings(),
        default=[],
        help="override settings",
    )
    group = parser.add_argument_group("shortcuts", "each for one setting of --set")
    for name, (keys, metavar) in SHORTCUTS.items():
        group.add_argument(name, metavar=metavar, help=", ".join(keys))


def given_overrides(options: argparse.Namespace) -> dict[str, str]:
    """'SECTION.key=value' → '--set' or the shortcut's name. Raises ConfigError where both say one setting."""
    from configs.default_config import Config

    found = dict.fromkeys(options.set, "--set")
    shortcuts = {name: getattr(options, name[2:].replace("-", "_")) for name in SHORTCUTS}
    shortcuts["--log-format"] = options.log_format
    shortcuts = {name: value for name, value in shortcuts.items() if value is not None}
    if not shortcuts:
        return found
    twice = [
        f"{name} {value} and --set {text}"
        for text, keys in Config.override_keys(options.set).items()
        for name, value in shortcuts.items()
        if {*keys} & {*_keys(name)}
    ]
    if twice:
        raise ConfigError(f"{'; '.join(twice)}: the same setting twice, leave one out")
    for name, value in shortcuts.items():
        for key in _keys(name):
            found[f"{key}={json.dumps(value, ensure_ascii=False) if key in _TEXTS else value}"] = name
    return found


def _keys(name: str) -> tuple[str, ...]:
    return SHORTCUTS[name][0] if name in SHORTCUTS else _LOG_FORMAT
