"""Trackers: what they are told, by one that only remembers, and by MLflow and Weights & Biases themselves."""

import importlib.util
import json
import logging
import shutil
from pathlib import Path

import pytest

import utils.runs.trackers as trackers
from configs.default_config import Config
from configs.errors import ConfigError
from configs.logging_settings import trackers_of
from data.phantom.radiographs import write_phantom
from tests.training_runs import arguments, run_main
from utils.listener import EpochEnd
from utils.runs.trackers import check_trackers, figures_of, watching_trackers

EPOCHS = 2


class Remembering:
    """A tracker as the protocol has it; `ask` is called with what is asked of it, and may raise."""

    def __init__(self, ask=lambda what: None) -> None:
        self.ask, self.told = ask, []

    def _note(self, what, *content):
        self.told.append((what, *content))
        self.ask(what)

    def start(self, params, known):
        self._note("start", dict(params), known)
        return known or "run 1"

    def log(self, step, figures):
        self._note("log", step, dict(figures))

    def finish(self, final, files, ending):
        self._note("finish", dict(final), [path.name for path in files], ending)

    def all(self, what):
        return [content for kind, *content in self.told if kind == what]


def remembered(patch: pytest.MonkeyPatch) -> list[Remembering]:
    """The trackers of the runs that are made from now on; MLflow need not be there."""
    made: list[Remembering] = []

    def make(*_):
        made.append(Remembering())
        return made[-1]

    patch.setattr(trackers, "MLflowTracker", make)
    patch.setattr(trackers, "find_spec", lambda name: object())
    return made


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def told_of(row: dict) -> dict[str, float]:
    """An independent reading of a row: every number in it, whose names are put together as the docs say."""
    found = {}
    for key, value in row.items():
        if key == "per_class":
            found |= {f"{name}/{one['name']}": n for one in value for name, n in one.items() if name != "name"}
        elif key not in ("epoch", "step", "split"):
            found[key] = value
    return {key: value for key, value in found.items() if value is not None and not isinstance(value, (bool, str))}


TRACKED = {"LOGGING__trackers": "[mlflow]", "LOGGING__tracker_artifacts": "[config, figures, log]"}


@pytest.fixture(scope="module")
def tracked(tmp_path_factory) -> tuple[Path, Remembering]:
    """(folder of a run, who was told of it)."""
    folder = tmp_path_factory.mktemp("tracked")
    write_phantom(folder / "phantom", 40, 64)
    with pytest.MonkeyPatch.context() as patch:
        made = remembered(patch)
        assert run_main(arguments(folder / "phantom", folder, "run", **TRACKED)) == 0
    return folder / "run", made[0]


def test_a_tracker_is_told_what_is_in_the_runs_files(tracked):
    folder, tracker = tracked
    ((params, known),) = tracker.all("start")
    config = Config.from_yaml(folder / "config.yaml")
    assert known is None and json.loads(params["TRAIN.batch_size"]) == 4 == config.TRAIN.batch_size
    assert json.loads(params["MODEL.num_classes"]) == 14 and "MODEL.views.aggregator" in params
    *epochs, report = rows(folder)
    by_step = [(step, figures) for step, figures in tracker.all("log") if "val_loss" in figures]
    assert by_step == [(row["step"], told_of(row)) for row in epochs] and len(epochs) == EPOCHS
    assert [step for step, figures in tracker.all("log") if "train/loss" in figures] == [*range(1, 15)]
    ((final, files, ending),) = tracker.all("finish")
    assert final == {f"test/{key}": value for key, value in told_of(report).items()} and ending == "finished"
    assert {"config.yaml", "metrics.jsonl", "train.log", "roc_curves.png", "training_curves.png"} == {*files}
    assert not (folder.parent / "logs").exists(), "TensorBoard is not named"
    assert json.loads((folder / "trackers.json").read_text()) == {"mlflow": "run 1"}


def test_a_resumed_run_goes_on_in_the_same(tracked, tmp_path, monkeypatch):
    shutil.copytree(tracked[0], tmp_path / "run")
    made = remembered(monkeypatch)
    assert run_main(["--resume", tmp_path / "run", "--set", "TRAIN.epochs=3"]) == 0
    (tracker,) = made
    assert tracker.all("start")[0][1] == "run 1"
    assert [step for step, figures in tracker.all("log") if "val_loss" in figures] == [21]


@pytest.mark.parametrize("when, asked", [("start", 1), ("log", 2), ("finish", 99)])
def test_one_that_fails_is_told_no_more_and_ends_nothing(when, asked, tmp_path, caplog, monkeypatch):
    """asked: how often at most."""

    def fail(what):
        if what == when:
            raise OSError("the server\nis away")

    made = Remembering(fail)
    monkeypatch.setattr(trackers, "WandbTracker", lambda *_: made)
    monkeypatch.setattr(trackers, "find_spec", lambda name: object())
    config = Config.from_overrides(["LOGGING.trackers=[tensorboard, wandb]"])
    run = trackers.RunFolder(tmp_path)
    with caplog.at_level(logging.WARNING), watching_trackers(config, run, False) as (listener,):
        listener.on_step(1, {"train/loss": 0.5, "train/gradient_norm": float("nan")})
        listener.on_step(2, {"train/loss": 0.5})
        listener.on_report({"split": "test", "loss": 0.25})
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == "wandb failed and is told no more of this run, which goes on (OSError: the server is away)"
    assert len(made.told) <= asked + 1
    assert {name for _, figures in made.all("log") for name in figures} <= {"train/loss"}


def test_how_a_run_ended_is_said(tmp_path, monkeypatch):
    made = Remembering()
    monkeypatch.setattr(trackers, "WandbTracker", lambda *_: made)
    monkeypatch.setattr(trackers, "find_spec", lambda name: object())
    config = Config.from_overrides(["LOGGING.trackers=[wandb]"])
    with watching_trackers(config, trackers.RunFolder(tmp_path), False):
        pass
    with pytest.raises(ZeroDivisionError), watching_trackers(config, trackers.RunFolder(tmp_path), False):
        raise ZeroDivisionError
    assert [ending for *_, ending in made.all("finish")] == ["interrupted", "failed"]


def test_one_that_is_not_installed_is_told_before_anything_is_done(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    assert run_main(arguments(tmp_path / "nowhere", tmp_path, "run", LOGGING__trackers="[tensorboard, mlflow]")) == 2
    error = capsys.readouterr().err
    assert "mlflow needs mlflow, sqlalchemy, alembic" in error and "pip install -r requirements-trackers.txt" in error
    assert not (tmp_path / "run").exists()
    config = Config.from_overrides(["LOGGING.trackers=[mlflow]", "LOGGING.mlflow_uri='http://localhost:1'"])
    with pytest.raises(ConfigError, match="mlflow needs mlflow, which"):
        check_trackers(config)


@pytest.mark.parametrize(
    "overrides, told",
    [
        ([], ("tensorboard",)),
        (["LOGGING.tensorboard=false"], ()),
        (["LOGGING.trackers=[]"], ()),
        (["LOGGING.trackers=[mlflow, wandb, mlflow]"], ("mlflow", "wandb")),
        (["LOGGING.tensorboard=false", "LOGGING.trackers=[wandb]"], ("wandb",)),
    ],
)
def test_who_is_told(overrides, told):
    assert trackers_of(Config.from_overrides(overrides).LOGGING) == told


@pytest.mark.parametrize(
    "overrides, problem",
    [
        (["LOGGING.tensorboard=false", "LOGGING.trackers=[tensorboard]"], "leave one of them out"),
        (["LOGGING.mlflow_uri=x"], "does not name mlflow"),
        (["LOGGING.wandb_mode=online"], "does not name wandb"),
        (["LOGGING.trackers=[comet]"], "tensorboard, mlflow, wandb"),
    ],
)
def test_contradictions_are_refused(overrides, problem):
    with pytest.raises(ConfigError, match=problem):
        Config.from_overrides(overrides)


def test_figures_are_the_finite_numbers():
    row = {"epoch": 1, "step": 5, "a": 1, "b": None, "c": float("inf"), "d": True, "attention": {"area": 0.5}}
    row["per_class"] = [{"name": "Mass", "auroc": 0.75, "positives": 3, "average_precision": None}]
    assert figures_of(row) == {"a": 1.0, "attention/area": 0.5, "auroc/Mass": 0.75, "positives/Mass": 3.0}


# ---- the packages themselves

RECORD = {"train_loss": 0.5, "val_loss": 0.25, "mean_auroc": 0.75, "skipped_steps": 0, "learning_rate": None}
CLASSES = [
    {"name": name, "auroc": 0.5 + n / 10, "positives": n}
    for n, name in enumerate(("Oedem (lung)", "肺炎", "a:b", "a;b"))
]


def epoch(number: int) -> dict:
    return {"epoch": number, "step": 7 * number, **RECORD, "train_loss": 1 / number, "per_class": CLASSES}


def tell(folder: Path, first: int, last: int, *overrides: str) -> None:
    """Two processes' worth of a run: epochs first to last, then the report."""
    config = Config.from_overrides(["LOGGING.tracker_artifacts=[config, log]", *overrides])
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(config.to_yaml())
    (folder / "metrics.jsonl").write_text("{}")
    with watching_trackers(config, trackers.RunFolder(folder), first > 1) as (listener,):
        for number in range(max(first - 1, 1), last + 1):  # a resumed run does again what was after its checkpoint
            listener.on_step(7 * number, {"train/loss": 0.5})
            listener.on_epoch(EpochEnd(epoch(number), False, {}, {}))
        listener.on_report({"split": "test", **RECORD})
        assert not listener.failed
    assert not listener.failed


def needs(*packages: str) -> None:
    lacking = [package for package in packages if importlib.util.find_spec(package) is None]
    if lacking:
        pytest.skip(f"{', '.join(lacking)} is not installed: pip install -r requirements-trackers.txt")


@pytest.mark.slow
def test_mlflow_has_the_metrics_of_the_run(tmp_path, monkeypatch):
    needs("mlflow", "sqlalchemy", "alembic")
    monkeypatch.chdir(tmp_path)
    folder, named = tmp_path / "run", ("LOGGING.trackers=[mlflow]", "LOGGING.experiment='chest: films'")
    tell(folder, 1, 2, *named)
    tell(folder, 3, 3, *named, "TRAIN.epochs=3")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("chest: films").experiment_id])
    assert (run.info.status, run.info.run_name, run.data.params["TRAIN.epochs"]) == ("FINISHED", "run", "50")
    assert run.data.tags["resumed.TRAIN.epochs"] == "3" and run.data.params["MODEL.backbone"] == '"convnext_base"'

    def history(key: str) -> list[tuple[int, float]]:
        return sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key))

    for key, values in told_of(epoch(1)).items():
        known = {"auroc/Oedem (lung)": "auroc/Oedem _lung_", "positives/Oedem (lung)": "positives/Oedem _lung_"}
        known |= {
            f"{kind}/a{mark}b": f"{kind}/a_b{end}"
            for kind in ("auroc", "positives")
            for mark, end in ((":", ""), (";", "-2"))
        }
        assert history(known.get(key, key)) == [(7 * n, told_of(epoch(n))[key]) for n in (1, 2, 3)], (key, values)
    assert run.data.metrics["test/mean_auroc"] == 0.75 and "learning_rate" not in run.data.metrics
    assert {one.path for one in client.list_artifacts(run.info.run_id)} == {"config.yaml", "metrics.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == {"run"}, "nothing is written into the current folder"


@pytest.mark.slow
def test_wandb_offline_has_the_metrics_of_the_run(tmp_path, monkeypatch):
    needs("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:1")  # who asks a server finds none
    folder = tmp_path / "run"
    tell(folder, 1, 2, "LOGGING.trackers=[wandb]")
    tell(folder, 3, 3, "LOGGING.trackers=[wandb]")
    name = json.loads((folder / "trackers.json").read_text())["wandb"]
    files = sorted(folder.glob(f"wandb/offline-run-*-{name}*/run-{name}.wandb"))
    assert files, "one run"
    history = [row for file in files for row in wandb_history(file) if "val_loss" in row]
    by_step = {row["step"]: row for row in history}
    for number in (1, 2, 3):
        assert {key: by_step[7 * number][key] for key in told_of(epoch(number))} == told_of(epoch(number))
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


@pytest.mark.slow
def test_a_server_that_is_not_there_costs_seconds(tmp_path, caplog):
    needs("mlflow")
    config = Config.from_overrides(["LOGGING.trackers=[mlflow]", "LOGGING.mlflow_uri='http://localhost:1'"])
    with caplog.at_level(logging.WARNING), watching_trackers(config, trackers.RunFolder(tmp_path), False) as (one,):
        assert one.failed
    assert [record for record in caplog.records if "mlflow failed and is told no more" in record.getMessage()]


def wandb_history(file: Path) -> list[dict]:
    """The rows of a .wandb file: LevelDB's log format behind a header of 7 bytes, a record a protocol buffer."""
    from wandb.proto import wandb_internal_pb2

    content, place, parts, found = file.read_bytes(), 7, b"", []
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:  # a header is never cut by the end of a block
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind not in (1, 4):  # whole, or the last part
            continue
        record, parts = wandb_internal_pb2.Record.FromString(parts), b""
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            found.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
    return found
