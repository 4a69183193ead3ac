"""predict.py that is stopped or killed anywhere, and goes on: its results are those of a pass that nothing stopped."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import predict
from data.phantom.radiographs import write_phantom
from inference import journal
from tests.served_studies import write_studies, write_study_run
from tests.test_predict import read_results, run, write_model
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("logging_as_it_was")  # main() takes over logging
ROOT, COUNT = Path(predict.__file__).parent, 11


class Stop(BaseException):
    pass


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> tuple[Path, Path]:
    """(a folder of eleven images, one of which cannot be read; a checkpoint)."""
    folder = tmp_path_factory.mktemp("resume")
    write_phantom(folder / "phantom", COUNT - 1, 64, seed=3)
    (folder / "phantom" / "images" / "!bad.png").write_bytes(b"\x89PNG")
    return folder / "phantom" / "images", write_model(folder / "one.pth", folder / "phantom")


def stop_after(monkeypatch, batches: int) -> None:
    """The process ends while it writes the next batch, whose first line is there in part."""
    add, added = journal.Journal.add, []

    def stopping(self, numbers) -> None:
        if len(added) == batches:
            self._files[0].write('{"row": 5, "fingerprint": "')
            raise Stop
        added.append(numbers)
        add(self, numbers)

    monkeypatch.setattr(journal.Journal, "add", stopping)


def stopped(monkeypatch, batches: int, *arguments: object) -> None:
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(patch, batches)
        predict.main([str(argument) for argument in (*arguments, "--device", "cpu")])


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files but for the time in predictions.json."""
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    whole = json.loads(found.pop("predictions.json"))
    return {**found, "json": json.dumps({**whole, "time": ""}).encode()}


@pytest.mark.parametrize("batches", [1, 3])
def test_a_stopped_pass_leaves_its_rows_and_goes_on_to_the_same_bytes(asked, tmp_path, monkeypatch, capsys, batches):
    folder, checkpoint = asked
    given = [folder, "--checkpoint", checkpoint, "--batch-size", 3, "--num-workers", 0]
    whole = run(tmp_path / "whole", *given, code=3)
    stopped(monkeypatch, batches, *given, "--output", tmp_path / "out")
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == whole[: 3 * batches]
    assert not (tmp_path / "out" / "predictions.json").exists()
    err = capsys.readouterr().err
    assert f"{3 * batches} of {COUNT} rows are in" in err and "--resume goes on" in err
    asked_again: list[int] = []
    with monkeypatch.context() as patch:
        add = journal.Journal.add
        patch.setattr(journal.Journal, "add", lambda self, rows: (asked_again.extend(rows), add(self, rows))[1])
        run(tmp_path / "out", *given, "--resume", code=3)
    # The batch of the file that cannot be read is tried again, as a whole.
    assert asked_again == [0, 1, 2, *range(3 * batches, COUNT)]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_process_goes_on(asked, tmp_path):
    """By SIGKILL in the middle, with workers: the folder is free at once, and nothing is lost or there twice."""
    folder, checkpoint = asked
    given = [folder, "--checkpoint", checkpoint, "--batch-size", 1, "--num-workers", 1, "--output", tmp_path / "out"]
    command = [sys.executable, ROOT / "predict.py", *given, "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    rows = tmp_path / "out" / "predictions.jsonl"
    with subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: rows.is_file() and rows.read_bytes().count(b"\n") >= 2, "two rows are there")
        process.send_signal(signal.SIGKILL)
    left = rows.read_bytes().count(b"\n")
    again = [folder, "--checkpoint", checkpoint, "--batch-size", 1, "--num-workers", 1]
    found = run(tmp_path / "out", *again, "--resume", code=3)
    print(f"{left} of {COUNT} rows were there")
    assert found == run(tmp_path / "whole", *again, code=3) and len(found) == COUNT


def test_what_has_changed_since_is_asked_again_and_said(asked, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    names = sorted(path.name for path in asked[0].iterdir())[1:9]
    for name in names[:7]:
        (folder / name).write_bytes((asked[0] / name).read_bytes())
    given = [folder, "--checkpoint", asked[1], "--batch-size", 2, "--num-workers", 0]
    run(tmp_path / "out", *given)
    (folder / names[2]).write_bytes((asked[0] / names[7]).read_bytes())  # another image under the same name
    os.utime(folder / names[2], (1, 1))
    (folder / names[6]).rename(folder / "zz_new.png")
    capsys.readouterr()
    found = run(tmp_path / "out", *given, "--resume")
    err = capsys.readouterr().err
    assert found == run(tmp_path / "whole", *given)
    assert f"1 have changed since and are asked again: '{names[2]}'" in err
    assert "1 are new: 'zz_new.png'" in err and f"1 are gone, and their results with them: '{names[6]}'" in err
    assert "5 of 7 rows are in" in err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--batch-size", "4"], "were made with --batch-size 3, this is 4"),
        (["--threshold", "0.3"], "were made with thresholds 0.5, as none were chosen: evaluate.py does, this is 0.3"),
        (["--tta"], "were made with --tta False, this is True"),
        (["--heatmaps"], "were made with --heatmaps none, this is grad_cam"),
    ],
)
def test_other_settings_are_refused(asked, tmp_path, capsys, more, words):
    given = [asked[0], "--checkpoint", asked[1], "--num-workers", 0]
    run(tmp_path, *given, "--batch-size", 3, code=3)
    before = contents(tmp_path)
    arguments = [*given, "--batch-size", 3, *more, "--resume", "--output", tmp_path, "--device", "cpu"]
    assert predict.main(list(map(str, arguments))) == 2
    assert words in capsys.readouterr().err.splitlines()[-1] and contents(tmp_path) == before


def test_another_model_is_refused_and_without_resume_it_begins_anew(asked, tmp_path, capsys, monkeypatch):
    folder, checkpoint = asked
    other = write_model(tmp_path / "other.pth", folder.parent, seed=1)
    given = [folder, "--batch-size", 3, "--num-workers", 0]
    stopped(monkeypatch, 1, *given, "--checkpoint", checkpoint, "--output", tmp_path / "out")
    left = (tmp_path / "out" / "predictions.jsonl").read_bytes()
    arguments = [*given, "--checkpoint", other, "--resume", "--output", tmp_path / "out", "--device", "cpu"]
    assert predict.main(list(map(str, arguments))) == 2
    assert "made with models of SHA-256" in capsys.readouterr().err
    run(tmp_path / "out", *given, "--checkpoint", other, code=3)
    err = capsys.readouterr().err
    assert "set aside as predictions.unfinished.jsonl" in err
    assert (tmp_path / "out" / "predictions.unfinished.jsonl").read_bytes() == left
    assert read_results(tmp_path / "out")["counts"]["images"] == COUNT


def test_nothing_to_go_on_from(asked, tmp_path, capsys):
    run(tmp_path / "out", asked[0], "--checkpoint", asked[1], "--resume", code=3)
    assert "there are no results in" in capsys.readouterr().err


def test_studies_go_on(tmp_path, monkeypatch):
    """A study whose row of the clinical table has changed is asked again."""
    data = write_studies(tmp_path / "data")
    checkpoint = write_study_run(tmp_path / "run", data)
    given = [data / "labels.csv", "--table", data / "clinical.csv", "--checkpoint", checkpoint, "--batch-size", 4]
    run(tmp_path / "whole", *given)
    stopped(monkeypatch, 2, *given, "--output", tmp_path / "out")
    run(tmp_path / "out", *given, "--resume")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    table = (data / "clinical.csv").read_text("utf-8")
    (data / "clinical.csv").write_text(table.replace("s3,43", "s3,50"), "utf-8")
    found = run(tmp_path / "out", *given, "--resume")
    assert found[3]["age"] == "50" and found == run(tmp_path / "again", *given)


@pytest.mark.slow
def test_heatmaps_that_are_there_are_not_drawn_again(asked, tmp_path, monkeypatch):
    """Rows come first; --heatmaps N draws the first N with a finding, whatever was drawn before."""
    folder, checkpoint = asked
    given = [folder, "--checkpoint", checkpoint, "--num-workers", 0, "--heatmaps", "3", "--threshold", "0.5"]
    run(tmp_path / "whole", *given, code=3)
    stopped(monkeypatch, 3, *given, "--output", tmp_path / "out")  # all rows in one batch, then two heatmaps
    records = (tmp_path / "out" / "predictions.jsonl").read_text("utf-8").splitlines()
    assert len(records) == COUNT + 3
    run(tmp_path / "out", *given, "--resume", code=3)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    drawn = [row["heatmaps"] for row in read_results(tmp_path / "out")["images"]]
    assert sum(map(bool, drawn)) == 3
    run(tmp_path / "out", *given[:-3], "1", "--threshold", "0.5", "--resume", code=3)
    assert sum(bool(row["heatmaps"]) for row in read_results(tmp_path / "out")["images"]) == 1
