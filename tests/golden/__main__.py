"""Golden runs from the command line.

python -m tests.golden compare COMMIT   make every run here and with an earlier commit, and say where they differ
python -m tests.golden record FILE      make every run and write its record, as in tests/golden/recorded.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str]) -> int:
    """Returns the exit code: 1 where runs differ, 2 for wrong arguments."""
    if len(arguments) < 2 or arguments[0] not in ("compare", "record"):
        print(__doc__, file=sys.stderr)
        return 2
    if arguments[0] == "record":
        write_record(Path(arguments[1]), arguments[2:])
        return 0
    return compare(arguments[1], arguments[2:])


def write_record(path: Path, names: list[str]) -> None:
    """Make the named runs, or all, and write their records beside the fingerprint of this machine."""
    from tests.golden.runs import OLD_RUNS, RUNS, fingerprint, make_run, resume_old_run

    with tempfile.TemporaryDirectory() as folder:
        runs = {name: make_run(name, Path(folder)) for name in names or RUNS if name in RUNS}
        runs |= {name: resume_old_run(name, Path(folder)) for name in names or OLD_RUNS if name in OLD_RUNS}
    content = {"fingerprint": fingerprint(), "runs": runs}
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def compare(commit: str, names: list[str]) -> int:
    """The same runs with the sources of an earlier commit and with these, one after another, on this machine."""
    from tests.golden.runs import differences

    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        subprocess.run(["git", "worktree", "add", "--detach", before, commit], cwd=ROOT, check=True)
        try:
            records = [_record_of(tree, Path(folder) / f"{i}.json", names) for i, tree in enumerate((before, ROOT))]
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", before], cwd=ROOT, check=True)
    different = 0
    for name, expected in records[0].items():
        lines = differences(expected, records[1][name])
        different += bool(lines)
        print(f"{name}: " + ("equal to the last bit" if not lines else "\n  ".join(["differs", *lines[:20]])))
    return 1 if different else 0


def _record_of(tree: Path, path: Path, names: list[str]) -> dict:
    """Made in a process of its own: `tree` has the sources, this file's folder the runs."""
    script = "import sys; sys.path[:0] = sys.argv[1:3]; import tests; tests.__path__[:0] = [sys.argv[2] + '/tests']; "
    script += "from tests.golden.__main__ import main; sys.exit(main(['record', *sys.argv[3:]]))"
    command = [sys.executable, "-c", script, tree, ROOT, path, *names]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL)
    return json.loads(path.read_text())["runs"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
