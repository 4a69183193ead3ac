"""All commands under one name: `hybridmednet train …`, or `python -m hybridmednet train …`, where it is installed."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from utils.command_line import show, show_error

_FOLDER = Path(__file__).resolve().parent
# In a wheel the scripts are in a folder of the package; in a clone they are beside it.
_INSTALLED = (_FOLDER / "commands").is_dir()
_SCRIPTS = _FOLDER / "commands" if _INSTALLED else _FOLDER.parent


def commands() -> dict[str, str]:
    """Command → the module whose `main` it is."""
    scripts = sorted(path.stem for path in _SCRIPTS.glob("*.py") if not path.stem.startswith(("test_", "_")))
    prefix = "hybridmednet.commands." if _INSTALLED else ""
    return {**{name: prefix + name for name in scripts}, "explain": "explain.__main__"}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; its exit code, 2 where there is none of this name."""
    given = sys.argv[1:] if arguments is None else arguments
    known = commands()
    if not given or given[0] in ("-h", "--help"):
        show(f"hybridmednet COMMAND …, with --help what each takes: {', '.join(known)}")
        return 0 if given else 2
    if given[0] not in known:
        show_error(f"unknown command '{given[0]}': there are {', '.join(known)}")
        return 2
    sys.argv = [f"hybridmednet {given[0]}", *given[1:]]
    run = import_module(known[given[0]]).main
    code: int = run(given[1:])
    return code


if __name__ == "__main__":
    sys.exit(main())
