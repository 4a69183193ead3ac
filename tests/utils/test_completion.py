"""What the shell completes: the answers themselves, and in an interactive bash at a terminal."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.followed import EVALUATE
from tests.waiting import LIMIT_S
from utils.completion import of_settings

ROOT = Path(__file__).resolve().parents[2]
MARKED = [*(f"{name}.py" for name in ("train", "evaluate", "predict", "export")), "explain/__main__.py"]


def test_settings_and_their_listed_values_are_offered():
    offered = of_settings()
    assert {"TRAIN.epochs=", "MODEL.gradient_checkpointing.enabled=", "LOSS.attention.method="} <= {*offered("TR")}
    assert offered("TRAIN.optimizer=") == ["TRAIN.optimizer=adamw", "TRAIN.optimizer=sgd"]
    assert offered("MODEL.fpn=a") == [f"MODEL.fpn={value}" for value in ("auto", "true", "false")]
    assert offered("TRAIN.epochs=") == offered("nothing=") == []
    assert {*of_settings(EVALUATE.keys)("")} == {f"{key}=" for key in EVALUATE.keys}


@pytest.mark.parametrize("name", MARKED)
def test_scripts_are_marked_for_argcomplete(name):
    """It reads the first 1024 bytes."""
    assert b"PYTHON_ARGCOMPLETE_OK" in (ROOT / name).read_bytes()[:1024]


class Terminal:
    """An interactive shell with the completion of docs/command_line.md switched on."""

    def __init__(self, command: list[str], switch_on: str) -> None:
        self.master, slave = pty.openpty()
        self.seen = ""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PS1": "first> ", "TERM": "dumb", "INPUTRC": os.devnull}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, env=environment, start_new_session=True
        )
        os.close(slave)
        self.write(f"{switch_on}; PS1='sec''ond> '\n")
        self.read_until("second> ")

    def write(self, text: str) -> None:
        os.write(self.master, text.encode())

    def read_until(self, expected: str) -> str:
        """What the terminal shows after it was asked, up to `expected`."""
        begin, end = len(self.seen), time.monotonic() + LIMIT_S
        while expected not in self.seen[begin:]:
            assert time.monotonic() < end, f"{expected!r} is not in {self.seen!r}"
            if select.select([self.master], [], [], 1)[0]:
                self.seen += os.read(self.master, 65536).decode()
        return self.seen[begin:]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


SWITCHED_ON = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(activate-global-python-argcomplete --dest=-)"'),
    "zsh": (
        ["zsh", "-f", "-i"],
        'autoload -Uz compinit && compinit -u -D; eval "$(activate-global-python-argcomplete --dest=-)"',
    ),
}


@pytest.fixture(params=SWITCHED_ON)
def terminal(request):
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    found = Terminal(*SWITCHED_ON[request.param])
    yield found
    found.close()


def completed(terminal: Terminal, line: str, expected: str) -> None:
    """The line is cleared first; one tab completes what is the only possibility."""
    terminal.write(f"\x15{line}\t")
    terminal.read_until(expected)


def test_a_shell_completes_options(terminal):
    completed(terminal, "python train.py --dry", "--dry-run ")


@pytest.mark.slow
def test_a_shell_completes_settings_values_files_and_modules(terminal):
    completed(terminal, "python train.py --set TRAIN.optim", "TRAIN.optimizer=")
    completed(terminal, "python train.py --set TRAIN.optimizer=ad", "TRAIN.optimizer=adamw")
    completed(terminal, "python train.py --config configs/nih", "configs/nih_chestxray14.yaml")
    completed(terminal, "python evaluate.py x --set DATA.num", "DATA.num_workers=")
    completed(terminal, "python -m explain x --method eig", "eigen_cam")
    completed(terminal, "python predict.py --format cs", "--format csv")
