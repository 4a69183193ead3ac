"""predict.py --watch as a ward has it: files that come, change, go and cannot be read; restarts; SIGTERM."""

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
from tests.data.sources.test_studies import write_dicom
from tests.test_predict import run, write_model
from tests.waiting import wait_until

ROOT = Path(predict.__file__).parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, list[Path]]:
    """(a checkpoint, images)."""
    folder = tmp_path_factory.mktemp("watch")
    write_phantom(folder / "phantom", 8, 64, seed=3)
    return write_model(folder / "one.pth", folder / "phantom"), sorted((folder / "phantom" / "images").iterdir())


class Watcher:
    """A process that watches; rows of its table."""

    def __init__(self, checkpoint: Path, folder: Path, output: Path, *more: object) -> None:
        given = ["--watch", folder, "--checkpoint", checkpoint, "--output", output, "--quiet", "0.5", *more]
        command = [sys.executable, ROOT / "predict.py", *given, "--device", "cpu"]
        self.output = output
        self.log = output.with_suffix(".log")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment, stderr=log)

    def rows(self) -> list[dict[str, str]]:
        try:
            with (self.output / "predictions.csv").open(encoding="utf-8-sig", newline="") as file:
                return list(csv.DictReader(file))
        except FileNotFoundError:
            return []

    def wait_for(self, count: int) -> list[dict[str, str]]:
        def there() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return len(self.rows()) >= count

        wait_until(there, f"{count} rows are there")
        return self.rows()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(120)

    def heartbeat(self) -> dict:
        return json.loads((self.output / "watch.json").read_text("utf-8"))


@pytest.mark.slow
def test_files_are_predicted_as_they_arrive_and_once_across_restarts(trained, tmp_path):
    checkpoint, images = trained
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "0.png").write_bytes(images[0].read_bytes())
    watcher = Watcher(checkpoint, folder, tmp_path / "out")
    assert [row["image"] for row in watcher.wait_for(1)] == ["0.png"]
    (folder / "half.png").write_bytes(images[1].read_bytes()[:500])  # its writer has stopped in the middle
    (folder / "1.png.part").write_bytes(images[1].read_bytes())
    (folder / "1.png.part").rename(folder / "1.png")
    rows = watcher.wait_for(3)
    assert [row["image"] for row in rows] == ["0.png", "1.png", "half.png"] and "half.png" in rows[2]["error"]
    assert watcher.heartbeat()["state"] == "watching" and watcher.heartbeat()["errors"] == 1
    assert watcher.stop(signal.SIGKILL) == -signal.SIGKILL
    with (tmp_path / "out" / "predictions.jsonl").open("a") as file:
        file.write('{"row": 3, "time": "')  # what a killed process may leave
    (folder / "half.png").write_bytes(images[1].read_bytes())  # now whole
    (folder / "2.png").write_bytes(images[2].read_bytes())
    (folder / "1.png").rename(folder / "done.png")
    watcher = Watcher(checkpoint, folder, tmp_path / "out")
    rows = watcher.wait_for(5)
    assert [row["image"] for row in rows[3:]] == ["2.png", "half.png"] and not rows[4]["error"]
    assert watcher.stop() == 0
    beat = watcher.heartbeat()
    assert (beat["state"], beat["rows"], beat["errors"], beat["waiting"]) == ("stopped", 5, 1, 0)
    assert "hold" in watcher.log.read_text() and "3 rows of before" in watcher.log.read_text()
    records = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text("utf-8").splitlines()]
    assert [record["row"] for record in records] == [0, 1, 2, 3, 4]
    found = run(tmp_path / "batch", images[0], images[2], "--checkpoint", checkpoint, "--batch-size", 1)
    names = [name for name in found[0] if name.startswith("probability")]
    for one, other in ((rows[0], found[0]), (rows[3], found[1])):
        assert [float(one[name]) for name in names] == pytest.approx([float(other[name]) for name in names], abs=1e-6)
    other = Watcher(checkpoint, folder, tmp_path / "out", "--threshold", "0.3")
    assert other.process.wait(120) == 2 and "were made with thresholds" in other.log.read_text()


@pytest.mark.slow
def test_dicom_files_with_everything_and_nobody_named(tmp_path, trained):
    folder = tmp_path / "Doe"
    folder.mkdir()
    watcher = Watcher(trained[0], folder, tmp_path / "out", "--no-identifiers", "--heatmaps", "1")
    write_dicom(folder / "p1.dcm", "1.2.826.0.1", PatientID="MRN-4711", PatientName="Doe^Jane")
    write_dicom(folder / "p2.dcm", "1.2.826.0.2", PatientID="MRN-4712")
    rows = watcher.wait_for(2)
    assert [row["image"] for row in rows] == ["00000", "00001"] and not any(row["error"] for row in rows)
    assert watcher.stop() == 0
    texts = [path.read_text("utf-8", "replace") for path in (tmp_path / "out").iterdir() if path.is_file()]
    found = "".join([*texts, watcher.log.read_text()]).replace(str(tmp_path), "")
    assert not [name for name in ("471", "Doe", "1.2.826", "p1", "p2") if name in found]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--watch", "none"], "there is no folder 'none'"),
        (["--watch", ".", "--output", "./out"], "is inside '.', which is watched"),
        (["a.png", "--watch", "."], "both INPUT and --watch"),
        ([], "neither INPUT nor --watch"),
        (["--watch", ".", "--quiet", "0"], "seconds above 0"),
        (["a.png", "--quiet", "3"], "seconds above 0, for --watch"),
    ],
)
@pytest.mark.usefixtures("logging_as_it_was")
def test_errors_are_one_line(trained, tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert predict.main([*arguments, "--checkpoint", str(trained[0]), "--device", "cpu"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and words in error
