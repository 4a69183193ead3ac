"""Files of a folder as they arrive: each is handed over once, when nobody writes to it any more.

The folder is looked at again and again, without what an operating system would tell: that works on network drives too.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

_DIGITS = 16
_TRIES = 2  # of what cannot be read: whoever writes it may only have paused
_PATIENCE = 6  # how many times longer it is waited for then
_REMEMBERED, _FORGOTTEN_S = 200_000, 3600.0
State = tuple[int, int, int]  # number, size in bytes, time of change in ns


class Unit(NamedTuple):
    """What is predicted together: a file, a series, or the files of a study. keys: by which its files, as they are now,
    are known again. tries: how often it was handed over before.
    """

    name: str
    paths: tuple[Path, ...]
    keys: tuple[str, ...]
    tries: int = 0


class _Seen(NamedTuple):
    """state: of a file. since: when it was first met like that. group: what it belongs to, '' where it is not known."""

    state: State
    since: float
    group: str


@dataclass
class Arrivals:
    """files: all that are there now. takes: whether one is to be predicted; asked when it has been the same for `quiet`
    seconds. group_of: path → what it is predicted together with, '' where that cannot be told yet; a group is complete
    when none of its files has changed for `quiet` seconds. handled: keys of files that were handed over before.
    """

    files: Callable[[], Iterable[Path]]
    takes: Callable[[Path], bool]
    group_of: Callable[[Path], str]
    quiet: float
    handled: set[str] = field(default_factory=set)
    clock: Callable[[], float] = time.monotonic
    _seen: dict[Path, _Seen] = field(default_factory=dict)
    _tries: dict[str, tuple[int, float]] = field(default_factory=dict)

    def poll(self) -> list[Unit]:
        """What is complete and was not handed over yet, sorted by name."""
        now, there = self.clock(), dict(self._states())
        self._seen = {path: self._look(path, state, now) for path, state in there.items()}
        self._forget(there)
        groups: dict[str, list[Path]] = {}
        for path, seen in self._seen.items():
            groups.setdefault(seen.group, []).append(path)
        restless = {seen.group for seen in self._seen.values() if now - seen.since < self.quiet}
        units = [self._unit(name, paths) for name, paths in sorted(groups.items()) if name and name not in restless]
        return [unit for unit in units if unit.paths and self._is_due(unit, now)]

    @property
    def waiting(self) -> int:
        """Files that were not handed over yet, as the last look found them."""
        return sum(not self._is_handled(path, seen.state) for path, seen in self._seen.items())

    def done(self, unit: Unit) -> None:
        """It is not handed over again, unless one of its files changes or another joins them."""
        self.handled.update(unit.keys)
        self._tries.pop(unit.name, None)

    def postpone(self, unit: Unit) -> bool:
        """What could not be read is handed over again later; False where that was tried often enough."""
        tries = unit.tries + 1
        self._tries[unit.name] = tries, self.clock() + _PATIENCE * self.quiet
        return tries < _TRIES

    def _states(self) -> Iterator[tuple[Path, State]]:
        for path in self.files():
            try:
                found = path.stat()
            except OSError:  # gone since it was listed
                continue
            yield path, (found.st_ino, found.st_size, found.st_mtime_ns)

    def _look(self, path: Path, state: State, now: float) -> _Seen:
        before = self._seen.get(path)
        group = before.group if before is not None else ""
        if before is not None and before.state == state:
            is_quiet = now - before.since >= self.quiet
            return before if group else before._replace(group=self.group_of(path) or (str(path) if is_quiet else ""))
        # What was handed over before is complete: others of its group need not wait for it.
        since = now - self.quiet if self._is_handled(path, state) else now
        return _Seen(state, since, group or self.group_of(path))

    def _unit(self, name: str, paths: list[Path]) -> Unit:
        """Of those that are to be predicted; the others are not looked at again."""
        taken, keys = [], list[str]()
        for path in sorted(paths):
            own = file_keys(path, self._seen[path].state)
            if self._is_handled(path, self._seen[path].state) or self.takes(path):
                taken.append(path)
                keys += own
            else:
                self.handled.update(own)
        return Unit(name, tuple(taken), tuple(keys), self._tries.get(name, (0, 0.0))[0])

    def _is_due(self, unit: Unit, now: float) -> bool:
        fresh = any(not self._is_handled(path, self._seen[path].state) for path in unit.paths)
        return fresh and now >= self._tries.get(unit.name, (0, now))[1]

    def _is_handled(self, path: Path, state: State) -> bool:
        return not self.handled.isdisjoint(file_keys(path, state))

    def _forget(self, there: Mapping[Path, State]) -> None:
        """Memory of what is gone; an empty folder may be a drive that is away."""
        self._tries = {name: value for name, value in self._tries.items() if self.clock() < value[1] + _FORGOTTEN_S}
        if there and len(self.handled) > max(_REMEMBERED, 8 * len(there)):
            self.handled &= {key for path, state in there.items() for key in file_keys(path, state)}


def file_keys(path: Path, state: State) -> tuple[str, str]:
    """By which a file is known again: by its place and by its number, each with size and time of change."""
    number, size, changed = state
    by_place, by_number = (
        hashlib.sha256(f"{what} {size} {changed}".encode("utf-8", "surrogateescape")).hexdigest()[:_DIGITS]
        for what in (str(path), f"number {number}")
    )
    return by_place, by_number
