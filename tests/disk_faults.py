"""Train on a disk that fills up, turns read-only or meets a quota after the first epoch; run by test_full_disk.py.

python tests/disk_faults.py FOLDER DATA FAULT

FAULT: full (needs a mount namespace of its own), read-only (root needs to be without CAP_DAC_OVERRIDE), quota.

Prints what came of it as JSON, for each CHECKPOINT.on_save_error: exit code, error lines, checkpoints and the epochs
they hold.
"""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from configs.errors import CheckpointError
from utils.checkpoint import load_checkpoint
from utils.runs.recorder import Recorder

SETTINGS = {
    "MODEL.backbone": "timm/test_resnet",
    "MODEL.pretrained": "false",
    "MODEL.attention": "none",
    "MODEL.fusion_channels": 8,
    "DATA.image_size": 32,
    "DATA.num_workers": 0,
    "TRAIN.epochs": 3,
    "TRAIN.batch_size": 16,
    "TRAIN.device": "cpu",
    "TRAIN.mixed_precision": "false",
    "TRAIN.channels_last": "true",
    "LOGGING.run_name": "run",
    "LOGGING.print_freq": 1,
}
DISK_MB = 60


class Fault:
    """Begins before the second epoch is recorded; ends before the third."""

    def __init__(self, kind: str, disk: Path) -> None:
        self.kind, self.disk, self.limit = kind, disk, resource.getrlimit(resource.RLIMIT_FSIZE)

    def begin(self) -> None:
        if self.kind == "full":
            with (self.disk / "filler").open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    return
        elif self.kind == "read-only":
            self._allow(0o555)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, self.limit[1]))

    def end(self) -> None:
        if self.kind == "full":
            (self.disk / "filler").unlink()
        elif self.kind == "read-only":
            self._allow(0o755)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, self.limit)

    def _allow(self, mode: int) -> None:
        for folder in (self.disk / "runs" / "run", self.disk / "logs" / "run"):
            folder.chmod(mode)
            for path in folder.iterdir():
                path.chmod(mode & 0o644 if mode == 0o755 else 0o444)


def run(disk: Path, data: Path, fault: Fault, on_save_error: str) -> dict:
    """One run with the fault in its second epoch."""
    on_epoch = Recorder.on_epoch

    def disturbed(recorder, end) -> None:
        if end.record["epoch"] == 2:
            fault.begin()
        elif end.record["epoch"] == 3:
            fault.end()
        on_epoch(recorder, end)

    location = {"DATA.data_dir": data, "CHECKPOINT.save_dir": disk / "runs", "LOGGING.log_dir": disk / "logs"}
    settings = {**SETTINGS, **location, "CHECKPOINT.on_save_error": on_save_error}
    Recorder.on_epoch = disturbed
    captured = io.StringIO()
    with redirect_stderr(captured):
        code = train.main(["--set", *(f"{key}={value}" for key, value in settings.items())])
    Recorder.on_epoch = on_epoch
    if code:
        fault.end()
    return {"code": code, "captured": captured.getvalue(), **checkpoints(disk / "runs" / "run")}


def checkpoints(folder: Path) -> dict:
    """Which epochs the files hold; unreadable ones."""
    held, unreadable = {}, []
    for path in sorted(folder.glob("*.pth")):
        try:
            content = load_checkpoint(path)
        except CheckpointError:
            unreadable.append(path.name)
            continue
        held[path.name] = content["progress"]["epoch"] if "progress" in content else content["metrics"]["epoch"]
    leftovers = [path.name for path in folder.glob(".*.tmp")]
    return {"held": held, "unreadable": unreadable, "leftovers": leftovers}


def main(disk: Path, data: Path, kind: str) -> None:
    outcomes = {}
    for choice in ("stop", "continue"):
        location = disk / choice
        location.mkdir()
        if kind == "full":
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(location)], check=True)
        outcomes[choice] = run(location, data, Fault(kind, location), choice)
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
