"""A run in MLflow, by its client: the process's own active run and tracking URI are left alone."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

# Unless the user says otherwise: nothing is sent anywhere, and a server that is not there is given up on soon.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_ALLOW_FILE_STORE": "true",  # a folder as a store is old-fashioned, and still somebody's
}
_STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
_MOST_AT_ONCE = 100  # parameters, of which a server takes no more
_MOST_OF_A_VALUE = 500


class MLflowTracker:
    """See utils.runs.trackers.Tracker. uri: None for mlflow.db in the run's folder."""

    def __init__(self, uri: str | None, experiment: str, folder: Path) -> None:
        self.own = uri is None
        self.uri, self.experiment, self.folder = (
            uri or f"sqlite:///{folder.resolve() / 'mlflow.db'}",
            experiment,
            folder,
        )
        self._client: MlflowClient | None = None
        self._run, self._names = "", _Names()
        self._logged: dict[str, set[tuple[int, float]]] = {}
        self._resumed = False

    def start(self, params: Mapping[str, str], known: str | None) -> str:
        """known: the run's id."""
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        client = self._client = MlflowClient(tracking_uri=self.uri)
        self._resumed = known is not None
        if known is not None:
            self._run = client.get_run(known).info.run_id
            client.update_run(self._run, status="RUNNING")
        else:
            self._run = client.create_run(self._experiment(client), run_name=self.folder.name).info.run_id
        there = client.get_run(self._run).data.params
        shown = {key: value[:_MOST_OF_A_VALUE] for key, value in params.items()}
        new = [Param(key, value) for key, value in shown.items() if key not in there]
        for begin in range(0, len(new), _MOST_AT_ONCE):
            client.log_batch(self._run, params=new[begin : begin + _MOST_AT_ONCE])
        for key, value in shown.items():  # a parameter is written once: what a resumed run changes is a tag
            if there.get(key, value) != value:
                client.set_tag(self._run, f"resumed.{key}", value)
        return self._run

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """What a resumed run logs again with the same value is there already."""
        from mlflow.entities import Metric

        assert self._client is not None
        now, named = int(time.time() * 1000), {self._names.of(name): value for name, value in figures.items()}
        metrics = [Metric(n, v, now, step) for n, v in named.items() if (step, v) not in self._history(n)]
        if metrics:
            self._client.log_batch(self._run, metrics=metrics)

    def finish(self, final: Mapping[str, float], files: Sequence[Path], ending: str) -> None:
        """final is logged as metrics without a step of their own."""
        assert self._client is not None
        self.log(0, final)
        for path in files:
            self._client.log_artifact(self._run, str(path))
        self._client.set_terminated(self._run, _STATUS[ending])

    def _experiment(self, client: MlflowClient) -> str:
        found = client.get_experiment_by_name(self.experiment)
        if found is not None:
            return str(found.experiment_id)
        place = (self.folder / "mlflow-artifacts").resolve().as_uri() if self.own else None
        return str(client.create_experiment(self.experiment, artifact_location=place))

    def _history(self, name: str) -> set[tuple[int, float]]:
        """(step, value) of a metric in a run that is gone on with."""
        if not self._resumed:
            return set()
        assert self._client is not None
        if name not in self._logged:
            history = self._client.get_metric_history(self._run, name)
            self._logged[name] = {(metric.step, metric.value) for metric in history}
        return self._logged[name]


class _Names:
    """Names as MLflow takes them: letters, digits and _-./ :; each has one of its own."""

    def __init__(self) -> None:
        self._given: dict[str, str] = {}

    def of(self, name: str) -> str:
        if name not in self._given:
            plain = re.sub(r"[^\w\-./ ]", "_", name)
            plain = "/".join(part if part.strip(".") else "_" for part in plain.split("/"))
            number, found = 1, plain
            while found in self._given.values():
                number += 1
                found = f"{plain}-{number}"
            self._given[name] = found
        return self._given[name]
