"""The parser of every script: an option with several values leaves to the positional arguments what is theirs.

argparse gives an option of nargs='+' whatever follows it: of `--checkpoint RUN image.png` it makes two checkpoints, and
no image is left. Here every such option (`Values`) says which values it takes, and what it does not take is positional.
Where that cannot be told, the command is refused, and the error says how to write it. docs/command_line.md.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, NoReturn

from utils.completion import Completer, complete, completing
from utils.json_output import active, json_line
from utils.log_options import add_log_options
from utils.runs.files import BEST, CONFIG, CROSS_VALIDATION, EPOCHS, LAST, METRICS
from utils.version import VERSION

EXIT_CODES = "0 done, 2 the command, its settings, files or data are wrong, 130 after Ctrl-C, 1 a mistake of ours"
# Whether a value is the option's: yes, no, or that it cannot be told from the value.
Verdict = bool | None
_OVERRIDE = re.compile(r"\s*\w+(\.\w+)+\s*=")
_MODELS = (".pth", ".pt", ".ckpt", ".safetensors", ".bin")
_INPUTS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".dcm", ".dicom", ".nii", ".nii.gz")
_TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".xlsx", ".json", ".json.gz")
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # what torch.save begins a file with, today and before 1.6


# ---- which values an option takes


def any_text(value: str) -> Verdict:
    """Of an option that takes any text: it cannot be told."""
    return None


def override(value: str) -> Verdict:
    """SECTION.key=value."""
    return bool(_OVERRIDE.match(value))


def whole_number(value: str) -> Verdict:
    """A whole number, with or without a sign."""
    return bool(re.fullmatch(r"[+-]?\d+", value))


def one_of(names: Collection[str]) -> Callable[[str], Verdict]:
    """Names, several with commas between them; what is nearly one too, unless there is a file of this name."""

    def takes(value: str) -> Verdict:
        meant = [bool(difflib.get_close_matches(part, names, 1, 0.8)) for part in value.split(",")]
        return set(value.split(",")) <= {*names} or (all(meant) and not Path(value).exists())

    return takes


def checkpoint(value: str) -> Verdict:
    """A run's folder or a model's file: by its name, or else its first bytes; None for what is not there."""
    path, name = Path(value), value.lower()
    if path.is_dir():
        names = (CONFIG, BEST, LAST, METRICS, CROSS_VALIDATION)
        return any((path / part).is_file() for part in names) or any(path.glob(EPOCHS))
    if name.endswith(_MODELS):
        return True
    if name.endswith((*_INPUTS, *_TABLES)):
        return False
    try:
        with path.open("rb") as file:
            return file.read(4).startswith((_ZIP, _PICKLE))
    except OSError:
        return None


def split_known(names: Sequence[str], known: Collection[str]) -> list[str]:
    """Names, those with commas taken apart where the whole is not known and every part is."""
    found: list[str] = []
    for name in names:
        parts = [part.strip() for part in name.split(",")]
        found += parts if name not in known and set(parts) <= {*known} else [name]
    return found


# ---- options and parser


class Values(argparse.Action):
    """An option with several values, nargs '+' (a list), or with one that may be left out, nargs '?'.

    It may be repeated: the values of all times are joined, and a default is none of them. takes: see above. names: the
    only ones that there are (checked: nothing else is let through); several may be written with commas between them.
    """

    def __init__(
        self,
        option_strings: Sequence[str],
        dest: str,
        nargs: Literal["+", "?"] = "+",
        takes: Callable[[str], Verdict] = any_text,
        names: Collection[str] = (),
        checked: bool = True,
        completer: Completer | None = None,
        **others: object,
    ) -> None:
        super().__init__(option_strings, dest, nargs=nargs, **others)  # type: ignore[arg-type]
        self.takes, self.names, self.checked = one_of(names) if names else takes, names, checked
        if completer or names:  # argcomplete looks for this attribute
            self.completer = completer or (lambda prefix, **_: list(names))
        self.most = 1 if nargs == "?" else None

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        if not isinstance(values, list):
            setattr(namespace, self.dest, values)
            return
        given = getattr(namespace, self.dest)
        names = [part for value in values for part in (value.split(",") if self.names else [value])]
        for name in names:
            if self.names and self.checked and name not in self.names:
                raise argparse.ArgumentError(self, f"invalid choice: {name!r} (choose from {', '.join(self.names)})")
        setattr(namespace, self.dest, [*([] if given is self.default else given), *names])


@dataclass
class _Run:
    """One option of several values and what follows it: (place in the command line, value)."""

    place: int
    option: str
    action: Values
    values: list[tuple[int, str]] = field(default_factory=list)
    positional: list[tuple[int, str]] = field(default_factory=list)

    def decide(self) -> None:
        """Move what the option does not take. Raises ValueError where it is mixed with what it takes."""
        for number, (_, value) in enumerate(self.values):
            if number == self.action.most or (
                (number or self.action.most is not None) and self.action.takes(value) is False
            ):
                self.values, self.positional = self.values[:number], self.values[number:]
                break
        late = [value for _, value in self.positional if self.action.most is None and self.action.takes(value)]
        if late:
            raise ValueError(
                f"argument {self.option}: {self.positional[0][1]!r} is none of its values, and {late[0]!r}, which "
                f"comes after it, is: write {self.option} {late[0]} apart"
            )

    def spare(self) -> list[tuple[int, str]]:
        """The last values that may just as well be positional ones."""
        first = 0 if self.action.most is not None else 1
        found: list[tuple[int, str]] = []
        for place, value in reversed(self.values[first:]):
            if self.action.takes(value) is not None:
                break
            found.insert(0, (place, value))
        return found

    def existing(self) -> int:
        """How many of these, from the last one back, are files or folders."""
        return len([*takewhile(lambda found: Path(found[1]).exists(), reversed(self.spare()))])


class Parser(argparse.ArgumentParser):
    """An ArgumentParser in which options and positional arguments may come in any order, with --version.

    exit_codes: for --help, behind the epilog.
    """

    # Any: argparse's own arguments.
    def __init__(self, *, exit_codes: str = EXIT_CODES, epilog: str = "", **others: Any) -> None:
        lines = [epilog, *([] if "Exit code" in epilog else [f"Exit code: {exit_codes}."])]
        super().__init__(epilog="\n".join(filter(None, lines)), **others)
        add_log_options(self)
        self.add_argument("--version", action="version", version=f"HybridMedNet {VERSION}")

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """As argparse does; where the shell asks what there is, it is answered instead."""
        complete(self)
        return super().parse_args(args, namespace)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse does, after the values of options were told from positional arguments."""
        given = list(sys.argv[1:] if args is None else args)
        if completing():
            return super().parse_known_args(given, namespace)
        return super().parse_known_args(self._sorted(given), namespace)

    def error(self, message: str) -> NoReturn:
        """As argparse does, exit code 2; without the usage where all output is JSON."""
        if active():
            self.exit(2, json_line("ERROR", "error", message) + "\n")
        super().error(message)

    def _sorted(self, args: list[str]) -> list[str]:
        """The same command line with the positional arguments at its end, behind '--'."""
        positional = [action for action in self._actions if not action.option_strings]
        if not positional or any(action.nargs == argparse.PARSER for action in positional):
            return args
        rest, runs, free = self._taken_apart(args)
        if not runs:
            return args
        try:
            for run in runs:
                run.decide()
        except ValueError as error:
            self.error(str(error))
        free += [found for run in runs for found in run.positional]
        self._hold_back(positional, runs, free)
        free.sort()
        if all(action.nargs is None for action in positional) and len(free) > len(positional):
            self._too_many(positional, runs, [value for _, value in free[len(positional) :]])
        options = [*rest, *((run.place, [run.option, *(value for _, value in run.values)]) for run in runs)]
        ordered = [word for _, words in sorted(options) for word in words]
        return [*ordered, *(["--", *(value for _, value in free)] if free else [])]

    def _taken_apart(self, args: list[str]) -> tuple[list[tuple[int, list[str]]], list[_Run], list[tuple[int, str]]]:
        """(other options with their values, those of several values, positional arguments), each with its place."""
        rest: list[tuple[int, list[str]]] = []
        runs: list[_Run] = []
        free: list[tuple[int, str]] = []
        place = 0
        while place < len(args):
            word = args[place]
            place += 1
            if word == "--":
                free += [(place + number, value) for number, value in enumerate(args[place:])]
                break
            if not self._is_option(word):
                free.append((place, word))
                continue
            action = None if "=" in word and word.startswith("--") else self._action(word)
            end = place
            while end < len(args) and args[end] != "--" and not self._is_option(args[end]):
                end += 1
            if isinstance(action, Values):
                runs.append(_Run(place, word, action, list(enumerate(args[place:end], place + 1))))
                place = end
                continue
            taken = min(end - place, 1) if action is not None and action.nargs is None else 0
            rest.append((place, [word, *args[place : place + taken]]))
            place += taken
        return rest, runs, free

    def _hold_back(self, positional: list[argparse.Action], runs: list[_Run], free: list[tuple[int, str]]) -> None:
        """Where positional arguments are missing, the last values of an option that takes any text are these."""
        missing = len([action for action in positional if action.nargs not in ("?", "*")]) - len(free)
        able = [run for run in runs if len(run.spare()) >= missing]
        if missing <= 0 or not able:
            return
        endless = any(action.nargs in ("+", "*") for action in positional)
        there = [run for run in able if run.existing() >= missing]
        found = there if len(there) == 1 else able
        run = found[0]
        count = max(run.existing(), missing) if endless else missing
        words = [value for one in found for _, value in (one.spare() if endless else one.values[-missing:])]
        name = _name(positional)
        if len(found) > 1 or (len(words) > count and run not in there):
            how = f"{run.option} {run.values[0][1]}"
            self.error(f"which of {', '.join(map(repr, words))} is {name}? Write {name} before the options ({how} …)")
        if run not in there:
            what = f"{words[-1]!r}, the last value of {run.option}, would be it and does not exist"
            self.error(f"the following arguments are required: {name} ({what})")
        free += run.values[-count:]
        run.values = run.values[:-count]

    def _too_many(self, positional: list[argparse.Action], runs: list[_Run], extra: list[str]) -> NoReturn:
        found = [(run.option, run.positional[0][1]) for run in runs if run.positional]
        why = "".join(f"; {value!r} is none of the values of {option}" for option, value in found)
        self.error(f"unrecognized arguments: {' '.join(extra)} (one {_name(positional)} is enough{why})")

    def _is_option(self, word: str) -> bool:
        """As argparse sees it; it takes '-1' for a number, and what has a space for a text."""
        if not word.startswith("-") or word == "-" or re.fullmatch(r"-\d+|-\d*\.\d+", word):
            return False
        return " " not in word or self._action(word.partition("=")[0]) is not None

    def _action(self, word: str) -> argparse.Action | None:
        """The option of this name, or the only one that begins so."""
        known = self._option_string_actions
        if word in known:
            return known[word]
        found = {id(action): action for name, action in known.items() if word[2:] and name.startswith(word)}
        return next(iter(found.values())) if len(found) == 1 else None


def _name(positional: Sequence[argparse.Action]) -> str:
    return str(positional[-1].metavar or positional[-1].dest)
