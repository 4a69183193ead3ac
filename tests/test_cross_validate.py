"""cross_validate.py from the command line to pooled figures: left and gone on with, failed, extended, asked as one."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import cross_validate
import evaluate
import predict
from configs.errors import CheckpointError, ConfigError, DataError, TrainingError
from data.phantom.radiographs import write_phantom
from tests import training_runs
from tests.waiting import LIMIT_S, wait_until
from utils.runs.control import Control
from utils.runs.cross_validation import CrossValidation, model_files
from utils.runs.lock import FolderLock

NAMES = ["Shadow", "Line"]
COUNT, TEST_PATIENTS = 36, 3


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """36 images of 12 patients, 3 of whom the table calls test; another who calls them val is as good as train."""
    folder = tmp_path_factory.mktemp("data") / "images"
    write_phantom(folder, COUNT, 64)
    with (folder / "labels.csv").open(encoding="utf-8") as file:
        images = [row["image"] for row in csv.DictReader(file)]
    rng = np.random.default_rng(0)
    rows = ["image,patient_id,split,sex,Shadow,Line"]
    for number, image in enumerate(images):
        patient = number // 3
        split = "test" if patient < TEST_PATIENTS else "val" if patient == TEST_PATIENTS else "train"
        rows.append(f"{image},p{patient},{split},{'FM'[patient % 2]},{rng.integers(2)},{rng.integers(2)}")
    (folder / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    return folder


def arguments_of(data: Path, runs: Path, name: str, *more: object, **settings: object) -> list[str]:
    given = training_runs.arguments(data, runs, name, **{"TRAIN__epochs": 1, **settings})
    draws = [] if "--draws" in more else ["--draws", "20"]
    return [str(one) for one in [*more, *draws, *given]]


def call(*arguments: object, control: Control | None = None):
    """cross_validate.cross_validate, as the script calls it; logging is put back."""
    with training_runs.process_state():
        options = cross_validate.parse_arguments([str(one) for one in arguments])
        return cross_validate.cross_validate(options, control or Control())


def table_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


class LeavesAt(Control):
    """Asks for a pause at the nth question."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    def request(self):
        self.left -= 1
        return "pause" if self.left <= 0 and self._has_to_save else None


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """Two folds, undisturbed."""
    runs = tmp_path_factory.mktemp("whole")
    assert call(*arguments_of(data, runs, "cv", "--folds", 2, "--subgroups", "sex")) is None
    return runs / "cv"


def test_every_study_outside_the_test_part_is_scored_once_by_a_run_that_has_not_seen_its_patient(whole, data):
    rows = table_of(whole / "predictions.csv")
    labels = {row["image"]: row for row in table_of(data / "labels.csv")}
    assert sorted(row["image"] for row in rows) == sorted(n for n, row in labels.items() if row["split"] != "test")
    for fold in range(2):
        held = {row["patient_id"] for row in rows if row["split"] == f"fold{fold}"}
        split = [row for row in table_of(whole / f"fold{fold}" / "split.csv") if not row["image"].startswith("#")]
        seen = {row["patient_id"] for row in split if row["split"] in ("train", "val")}
        assert held and not held & seen and {row["patient_id"] for row in split if row["split"] == "test"} == held
        unused = {row["image"] for row in split if row["split"] == ""}
        assert unused == {name for name, row in labels.items() if row["split"] == "test"}


def test_the_figures_are_scikit_learns_on_the_predictions(whole):
    rows = table_of(whole / "predictions.csv")
    results, summary = (json.loads((whole / name).read_text()) for name in ("metrics.json", "summary.json"))
    for one in results["classes"]:
        y, p = ([float(row[f"{kind} {one['name']}"]) for row in rows] for kind in ("label", "probability"))
        assert one["figures"]["auroc"]["value"] == pytest.approx(roc_auc_score(y, p))
        assert summary["pooled"][one["name"]]["auroc"] == one["figures"]["auroc"]
        within = [
            roc_auc_score(*([v for v, row in zip(of, rows) if row["split"] == f"fold{fold}"] for of in (y, p)))
            for fold in range(2)
        ]
        spread = summary["over_folds"][one["name"]]["auroc"]
        assert (spread["mean"], spread["sd"]) == pytest.approx((np.mean(within), np.std(within, ddof=1)))
        assert [run["figures"][one["name"]]["auroc"]["value"] for run in summary["runs"]] == pytest.approx(within)
    assert (summary["folds"], summary["seeds"], summary["optimistic"]) == (2, {"0": summary["pooled"]}, False)
    assert results["subgroups"][0]["column"] == "sex" and results["split"] == "out of fold"
    report = (whole / "report.html").read_text()
    assert "Each run on what it had held out" in report and "Pooled and within folds" in report
    assert [row["run"] for row in table_of(whole / "folds.csv")] == ["fold0", "fold1"]


def test_the_test_part_is_scored_by_the_mean_of_all_runs(whole, data, tmp_path):
    rows = table_of(whole / "evaluation-test" / "predictions.csv")
    assert len(rows) == 3 * TEST_PATIENTS
    images = [str(data / row["image"]) for row in rows]
    alone = [whole / "fold0", whole / "fold1"]
    tables = []
    for number, models in enumerate([[alone[0]], [alone[1]], [whole]]):
        given = [*images, "--checkpoint", *models, "--output", tmp_path / str(number), "--format", "csv"]
        with training_runs.process_state():
            assert predict.main([str(one) for one in given]) == 0
        found = table_of(tmp_path / str(number) / "predictions.csv")
        tables.append(np.array([[float(row[f"probability {name}"]) for name in NAMES] for row in found]))
    scored = np.array([[float(row[f"probability {name}"]) for name in NAMES] for row in rows])
    assert np.allclose((tables[0] + tables[1]) / 2, scored, atol=1e-6) and np.allclose(tables[2], scored, atol=1e-6)
    assert np.abs(tables[0] - tables[1]).max() > 1e-4
    assert [row["findings"] for row in rows] == [row["findings"] for row in found]


def test_a_cross_validation_that_was_left_goes_on_to_the_same_predictions(whole, data, tmp_path, caplog):
    given = arguments_of(data, tmp_path, "cv", "--folds", 2)
    interrupted = call(*given, control=LeavesAt(3))
    assert interrupted is not None and interrupted.exit_code == 143
    with pytest.raises(CheckpointError, match=r"is not finished: fold0 \(paused\), fold1 \(not begun\)"):
        model_files(tmp_path / "cv")
    assert not (tmp_path / "cv" / "predictions.csv").exists()
    assert call(*given, "--resume") is None
    first, second = ((folder / "predictions.csv").read_bytes() for folder in (whole, tmp_path / "cv"))
    assert first == second
    for fold in ("fold0", "fold1"):
        training_runs.same_outcome(whole / fold, tmp_path / "cv" / fold)


def test_runs_that_fail_are_named_and_the_others_are_trained(data, tmp_path, monkeypatch):
    asked = []

    def fails_in_fold0(config, resumed, control):
        asked.append((config.LOGGING.run_name, config.TRAIN.seed))
        if config.LOGGING.run_name.startswith("fold0"):
            raise TrainingError("the loss is not finite")
        return training_result(config)

    monkeypatch.setattr(cross_validate, "train", fails_in_fold0)
    with pytest.raises(TrainingError, match=r"2 of 4 runs failed \(fold0: the loss is not finite; fold0-seed8"):
        call(*arguments_of(data, tmp_path, "cv", "--folds", 2, "--seeds", 2, TRAIN__seed=7))
    assert asked == [("fold0", 7), ("fold1", 7), ("fold0-seed8", 8), ("fold1-seed8", 8)]


def training_result(config):
    class Result:
        interrupted = None

    return Result()


def test_two_processes_in_one_folder_are_refused(whole):
    with FolderLock(whole), pytest.raises(CheckpointError, match="training in"):
        call("--resume", whole)


def test_a_dry_run_shows_the_folds_and_makes_nothing(data, tmp_path, capsys):
    assert call(*arguments_of(data, tmp_path, "cv", "--folds", 3, "--dry-run")) is None
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["fold", "part", "patients", "studies", *NAMES] and len(lines) == 12
    assert lines[10].split()[-4:-2] == [str(TEST_PATIENTS), str(3 * TEST_PATIENTS)] and not (tmp_path / "cv").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--folds", 50], "the folds are of 9 patients"),
        (["--folds", 0], "--folds 0: a whole number from 1"),
        (["--folds", 1], "is what train.py does"),
        (["--seeds", 0], "--seeds 0: a whole number from 1"),
        (["--folds", 1, "--seeds", 2, "--part", "train"], "--part train: with --folds 1"),
        (["--threshold", "best"], "unknown threshold rule"),
        (["--calibrate", "magic"], "unknown calibration"),
        (["--draws", 0], "--draws 0"),
        (["--subgroups", "seks"], "no column 'seks' .there is sex"),
        (["--resume", "nowhere"], "is no folder of a cross-validation"),
        (["--resume"], "there is no cross-validation in"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(data, tmp_path, more, says):
    with pytest.raises((ConfigError, DataError, CheckpointError), match=says):
        call(*arguments_of(data, tmp_path, "cv", *more))
    assert not (tmp_path / "cv").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--folds", 3], "--folds 3: .* began with 2"),
        (["--validation", "held-out"], "--validation held-out: .* began with inner"),
        (["--set", "TRAIN.epochs=2"], r"TRAIN.epochs 1 → 2"),
        (["--set", "MODEL.backbone=resnet18", "TRAIN.seed=3"], "MODEL.backbone"),
    ],
)
def test_other_folds_or_settings_are_refused_on_resume(whole, more, says):
    before = (whole / "cross_validation.json").read_bytes()
    with pytest.raises(ConfigError, match=says):
        call("--resume", whole, *more)
    assert (whole / "cross_validation.json").read_bytes() == before


def test_what_has_no_effect_may_change_and_seeds_may_be_added(whole, data, tmp_path, monkeypatch):
    copied = Path(shutil.copytree(whole, tmp_path / "cv"))
    asked = []

    def remembers(config, resumed, control):
        asked.append(config)
        raise TrainingError("enough")

    monkeypatch.setattr(cross_validate, "train", remembers)
    with pytest.raises(TrainingError, match="2 of 4 runs failed"):
        call("--resume", copied, "--seeds", 2, "--set", "DATA.num_workers=1", "LOGGING.print_freq=7")
    assert [one.LOGGING.run_name for one in asked] == ["fold0-seed1", "fold1-seed1"]
    assert {(one.TRAIN.seed, one.DATA.num_workers, one.LOGGING.print_freq) for one in asked} == {(1, 1, 7)}
    assert CrossValidation.read(copied).seeds == (0, 1)
    with pytest.raises(ConfigError, match=r"--seeds 1: .* has 2 already"):
        call("--resume", copied, "--seeds", 1)


@pytest.mark.parametrize("split", ["train", "val", "all"])
def test_its_runs_as_one_model_are_not_scored_on_what_they_were_trained_on(whole, split, capsys, logging_as_it_was):
    assert evaluate.main([str(whole), "--split", split]) == 2
    assert "for its runs as one model: --split test, or --data with other images" in capsys.readouterr().err


def test_other_data_with_names_of_training_are_remarked_on(whole, data, tmp_path, logging_as_it_was):
    other = Path(shutil.copytree(data, tmp_path / "other"))
    rows = (other / "labels.csv").read_text().splitlines()
    (other / "labels.csv").write_text("\n".join([rows[0], *rows[-12:]]))
    given = [str(whole), "--data", str(other), "--split", "all", "--draws", "20", "--output", str(tmp_path / "out")]
    assert evaluate.main(given) == 0
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert results["images"] == 12 and "12 of these images or their patients" in " ".join(results["warnings"])


def test_commands_for_one_model_say_that_it_is_several(whole):
    from utils.runs.folder import model_file

    with pytest.raises(CheckpointError, match=r"is a cross-validation, of several models: name one, such as .*fold0"):
        model_file(whole)


def test_it_is_not_taken_for_the_newest_run(whole):
    from utils.runs.folder import find_run

    with pytest.raises(CheckpointError, match="there is no run in"):
        find_run("", str(whole.parent))


@pytest.mark.slow
def test_one_split_with_several_seeds_and_calibration(data, tmp_path):
    assert call(*arguments_of(data, tmp_path, "cv", "--folds", 1, "--seeds", 2, "--calibrate", "platt")) is None
    summary = json.loads((tmp_path / "cv" / "summary.json").read_text())
    assert list(summary["seeds"]) == ["0", "1"] and summary["variances"]["folds"] is None
    assert summary["variances"]["seeds"] > 0 and not (tmp_path / "cv" / "evaluation-test").exists()
    rows = table_of(tmp_path / "cv" / "predictions.csv")
    assert len(rows) == 9 and {row["split"] for row in rows} == {"test"}
    metrics = json.loads((tmp_path / "cv" / "metrics.json").read_text())
    assert metrics["calibration"]["method"] == "platt, each of 2 models by its own"
    assert (tmp_path / "cv" / "fold0" / "split.csv").read_bytes() == (
        tmp_path / "cv" / "fold0-seed1" / "split.csv"
    ).read_bytes()


@pytest.mark.slow
def test_held_out_validation_is_called_optimistic_and_train_alone_leaves_the_rest(data, tmp_path):
    more = ["--folds", 2, "--validation", "held-out", "--part", "train"]
    assert call(*arguments_of(data, tmp_path, "cv", *more)) is None
    metrics = json.loads((tmp_path / "cv" / "metrics.json").read_text())
    assert metrics["warnings"][0].startswith("Optimistic") and metrics["images"] == COUNT - 12
    assert not (tmp_path / "cv" / "evaluation-test").exists()
    assert evaluate.main([str(tmp_path / "cv"), "--split", "val", "--draws", "20"]) == 0  # none has seen it
    assert len(table_of(tmp_path / "cv" / "evaluation-val" / "predictions.csv")) == 3


@pytest.mark.slow
def test_a_signal_pauses_the_process_and_the_same_command_goes_on(whole, data, tmp_path):
    given = arguments_of(data, tmp_path, "cv", "--folds", 2)
    command = [sys.executable, str(training_runs.ROOT / "cross_validate.py"), *given]
    status = tmp_path / "cv" / "fold0" / "status.json"
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: status.is_file() and '"training"' in status.read_text(), "fold0 to be trained")
        process.terminate()
        assert process.wait(2 * LIMIT_S) == 143
    assert subprocess.run([*command, "--resume"], cwd=tmp_path, check=False, timeout=4 * LIMIT_S).returncode == 0
    assert (whole / "predictions.csv").read_bytes() == (tmp_path / "cv" / "predictions.csv").read_bytes()
