"""train.py and its presets from Python."""

from __future__ import annotations

from pathlib import Path

from configs import default_config
from configs.default_config import Config
from configs.errors import ConfigError
from utils.runs.control import Control
from utils.runs.result import RunResult


def train(config: Config, resumed: str | Path | None = None, control: Control | None = None) -> RunResult:
    """What `python train.py` does with these settings: data, network, training, report; where the run's files are.

    resumed: a run's folder or one of its checkpoints to go on with. control: may ask to pause or stop.
    Raises HybridMedNetError in one line.
    """
    from train import train as recipe
    from utils.runs.folder import find_run

    return recipe(config, None if resumed is None else find_run(str(resumed), config.CHECKPOINT.save_dir), control)


def preset(name: str) -> Path:
    """The YAML file of a preset, for Config.from_yaml: 'quickstart', 'low_resource', … Raises ConfigError."""
    folder = Path(default_config.__file__).parent
    known = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if name not in known:
        raise ConfigError(f"there is no preset '{name}': there are {', '.join(known)}")
    return known[name]
