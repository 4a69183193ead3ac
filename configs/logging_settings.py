"""Log lines, scalars and trackers of a run, and what of it contradicts itself."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveInt

from configs.section import Section
from configs.section import setting as _setting

TrackerName = Literal["tensorboard", "mlflow", "wandb"]


class LoggingSettings(Section):
    """Log lines, scalars and the name of the run."""

    section_name: ClassVar[str] = "LOGGING"

    log_dir: str = _setting("./logs", "TensorBoard files, one folder per run.")
    tensorboard: bool = _setting(True, "Write TensorBoard scalars.")
    trackers: list[TrackerName] | None = _setting(
        None, "Who is told of the run, in place of LOGGING.tensorboard; null: as that says. docs/runs.md."
    )
    experiment: str | None = _setting(
        None, "The experiment of MLflow, the project of Weights & Biases; null: MODEL.name."
    )
    mlflow_uri: str | None = _setting(
        None,
        "MLflow's store, such as sqlite:////data/mlflow.db or a server's address; null: mlflow.db in the run's folder.",
    )
    wandb_mode: Literal["offline", "online"] = _setting(
        "offline",
        "offline: Weights & Biases writes into the run's folder, for `wandb sync`; online: it asks its server.",
    )
    tracker_artifacts: list[Literal["config", "figures", "log", "model"]] = _setting(
        ["config"], "Files that MLflow and Weights & Biases get at the end of a run."
    )
    print_freq: PositiveInt = _setting(10, "Optimizer steps between plain log lines and scalars.")
    format: Literal["text", "json"] = _setting("text", "Log lines as text, or one JSON object per line.")
    progress: Literal["auto", "bar", "plain"] = _setting("auto", "auto: a bar on a terminal, lines elsewhere.")
    figure_format: Literal["png", "svg", "pdf"] = _setting("png", "Of the run's curves; svg, pdf: for a paper.")
    run_name: str | None = _setting(None, "Folder of the run; null: name, backbone, attention and time.")


def trackers_of(settings: LoggingSettings) -> tuple[TrackerName, ...]:
    """Who is told of the run, each once."""
    if settings.trackers is None:
        return ("tensorboard",) if settings.tensorboard else ()
    return tuple(dict.fromkeys(settings.trackers))


def tracker_problems(settings: LoggingSettings) -> list[str]:
    """Settings that nothing would follow, or that say the opposite of each other."""
    told, problems = trackers_of(settings), []
    if not settings.tensorboard and "tensorboard" in told:
        problems.append("LOGGING.trackers names tensorboard and LOGGING.tensorboard is false: leave one of them out")
    if settings.mlflow_uri is not None and "mlflow" not in told:
        problems.append(f"LOGGING.mlflow_uri '{settings.mlflow_uri}': LOGGING.trackers does not name mlflow")
    if settings.wandb_mode == "online" and "wandb" not in told:
        problems.append("LOGGING.wandb_mode 'online': LOGGING.trackers does not name wandb")
    return problems
