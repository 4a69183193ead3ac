"""A run in Weights & Biases, in files of the run's folder unless its server is asked for."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import wandb

_EXIT_CODES = {"finished": 0, "interrupted": 255, "failed": 1}
_MOST_S = 10.0  # for a server to answer


class WandbTracker:
    """See utils.runs.trackers.Tracker."""

    def __init__(self, mode: Literal["offline", "online"], project: str, folder: Path) -> None:
        self.mode, self.project, self.folder = mode, project, folder
        self._run: wandb.Run | None = None

    def start(self, params: Mapping[str, str], known: str | None) -> str:
        """known: the run's id; offline, `wandb sync` joins what has the same."""
        import json

        import wandb

        quiet = wandb.Settings(
            silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True, init_timeout=_MOST_S
        )
        name = known or secrets.token_hex(8)
        self._run = wandb.init(
            project=self.project,
            name=self.folder.name,
            id=name,
            resume="allow" if self.mode == "online" else None,
            dir=str(self.folder),
            mode=self.mode,
            config={key: json.loads(value) for key, value in params.items()},
            settings=quiet,
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        return name

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """With the step as a figure beside them: W&B's own may not go back, as a resumed run does."""
        assert self._run is not None
        self._run.log({**figures, "step": step})

    def finish(self, final: Mapping[str, float], files: Sequence[Path], ending: str) -> None:
        """final goes into the summary."""
        assert self._run is not None
        self._run.summary.update(dict(final))
        for path in files:
            self._run.save(str(path.resolve()), base_path=str(self.folder.resolve()), policy="now")
        self._run.finish(exit_code=_EXIT_CODES[ending])
