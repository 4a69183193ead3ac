"""Files as they arrive: whole ones, each once, whatever happens to them meanwhile."""

import os
from pathlib import Path

import pytest

from data.sources import arrivals as module
from data.sources.arrivals import Arrivals
from data.sources.watched import WatchedFolder
from tests.data.sources.test_studies import write_dicom

QUIET = 5.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def watching(folder: Path, clock: Clock, kind: str = "images", handled: set[str] | None = None) -> Arrivals:
    folder.mkdir(exist_ok=True)
    of = WatchedFolder(folder, kind)
    return Arrivals(of.files, of.takes, of.group_of, QUIET, handled or set(), clock)


def names(units) -> list[list[str]]:
    return [[path.name for path in unit.paths] for unit in units]


def taken(arrivals: Arrivals) -> list[list[str]]:
    """What is handed over, and counts as done."""
    units = arrivals.poll()
    for unit in units:
        arrivals.done(unit)
    return names(units)


def test_a_file_is_handed_over_once_and_only_when_nobody_writes_to_it(tmp_path, clock):
    arrivals, file = watching(tmp_path / "in", clock), tmp_path / "in" / "a.png"
    file.write_bytes(b"1")
    assert taken(arrivals) == []
    for step in range(3):  # written in pieces, with pauses that are too short
        clock.now += QUIET - 1
        with file.open("ab") as open_file:
            open_file.write(b"more")
        assert taken(arrivals) == [], step
    assert arrivals.waiting == 1
    clock.now += QUIET
    assert taken(arrivals) == [["a.png"]] and arrivals.waiting == 0
    clock.now += 100
    assert taken(arrivals) == []
    again = watching(tmp_path / "in", clock, handled=set(arrivals.handled))  # another process
    clock.now += 100
    assert taken(again) == [] and taken(again) == []


def test_renamed_changed_deleted_and_partial_files(tmp_path, clock):
    arrivals, folder = watching(tmp_path / "in", clock), tmp_path / "in"
    for name in ("a.png", "b.png", "c.png.part", "d.png", ".hidden.png", "note.txt"):
        (folder / name).write_bytes(name.encode())
    arrivals.poll()
    clock.now += QUIET
    (folder / "d.png").unlink()
    assert taken(arrivals) == [["a.png"], ["b.png"]]
    (folder / "done").mkdir()
    (folder / "a.png").rename(folder / "done" / "a.png")  # moved out of the way by whoever sent it
    (folder / "c.png.part").rename(folder / "c.png")
    (folder / "b.png").write_bytes(b"a corrected image")
    assert taken(arrivals) == []
    clock.now += QUIET
    assert taken(arrivals) == [["b.png"], ["c.png"]]
    (folder / "note.txt").write_bytes(b"changed")
    clock.now += QUIET
    taken(arrivals)
    clock.now += QUIET
    assert taken(arrivals) == []


def test_new_numbers_of_files_after_a_restart_do_not_matter(tmp_path, clock):
    """As on some network drives; and a copy is another file."""
    arrivals, file = watching(tmp_path / "in", clock), tmp_path / "in" / "a.png"
    file.write_bytes(b"1")
    os.utime(file, ns=(5, 5))
    arrivals.poll()
    clock.now += QUIET
    taken(arrivals)
    file.rename(tmp_path / "x")
    file.write_bytes(b"1")
    os.utime(file, ns=(5, 5))
    clock.now += 2 * QUIET
    assert taken(arrivals) == []
    (tmp_path / "in" / "b.png").write_bytes(b"1")
    arrivals.poll()
    clock.now += QUIET
    assert taken(arrivals) == [["b.png"]]


def test_what_cannot_be_read_is_handed_over_twice_and_later(tmp_path, clock):
    arrivals = watching(tmp_path / "in", clock)
    (tmp_path / "in" / "a.png").write_bytes(b"1")
    arrivals.poll()
    clock.now += QUIET
    (unit,) = arrivals.poll()
    assert arrivals.postpone(unit) and arrivals.poll() == []
    clock.now += 6 * QUIET
    (unit,) = arrivals.poll()
    assert unit.tries == 1 and not arrivals.postpone(unit)
    arrivals.done(unit)
    clock.now += 100
    assert arrivals.poll() == []


def test_a_study_is_whole_when_none_of_its_files_is_new(tmp_path, clock):
    folder = tmp_path / "in"
    arrivals = watching(folder, clock, "studies")
    write_dicom(folder / "1.dcm", "1.2.3")
    arrivals.poll()
    clock.now += QUIET - 1
    write_dicom(folder / "later" / "2.dcm", "1.2.3")
    write_dicom(folder / "9.dcm", "1.2.9")
    whole = (folder / "9.dcm").read_bytes()
    (folder / "9.dcm").write_bytes(whole[:100])  # too little to say which study it is of
    arrivals.poll()
    clock.now += QUIET - 1
    (folder / "9.dcm").write_bytes(whole)
    assert taken(arrivals) == []
    clock.now += QUIET - 1
    assert taken(arrivals) == [["1.dcm", "2.dcm"]]
    clock.now += QUIET
    assert taken(arrivals) == [["9.dcm"]]
    write_dicom(folder / "3.dcm", "1.2.3")  # a late one: the study is predicted again, with all its files
    arrivals.poll()
    clock.now += QUIET
    assert taken(arrivals) == [["1.dcm", "3.dcm", "2.dcm"]]


def test_slices_of_a_folder_and_views_of_a_folder(tmp_path, clock):
    arrivals = watching(tmp_path / "volumes", clock, "volumes")
    for number in range(2):
        write_dicom(tmp_path / "volumes" / "s1" / f"{number}.dcm", "1.2.3")
    (tmp_path / "volumes" / "t1.nii.gz").write_bytes(b"x")
    arrivals.poll()
    clock.now += QUIET
    units = arrivals.poll()
    asked = [WatchedFolder(tmp_path / "volumes", "volumes").asked(unit.paths)[0].name for unit in units]
    assert asked == ["s1", "t1.nii.gz"]
    arrivals = watching(tmp_path / "studies", clock, "studies")
    (tmp_path / "studies" / "s7").mkdir()
    for name in ("s7/frontal.png", "s7/lateral.png", "alone.png"):
        (tmp_path / "studies" / name).write_bytes(b"x")
    arrivals.poll()
    clock.now += QUIET
    assert taken(arrivals) == [["alone.png"], ["frontal.png", "lateral.png"]]


def test_links_out_and_memory(tmp_path, clock, monkeypatch):
    (tmp_path / "secret.png").write_bytes(b"x")
    arrivals = watching(tmp_path / "in", clock)
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    arrivals.poll()
    clock.now += QUIET
    assert taken(arrivals) == []
    monkeypatch.setattr(module, "_REMEMBERED", 20)
    for number in range(30):
        file = tmp_path / "in" / f"{number}.png"
        file.write_bytes(bytes(number + 1))
        arrivals.poll()
        clock.now += QUIET
        assert taken(arrivals) == [[file.name]]
        file.unlink()
    assert len(arrivals.handled) < 30
    (tmp_path / "in" / "link.png").unlink()
    before = set(arrivals.handled)
    arrivals.poll()  # an empty folder may be a drive that is away
    assert arrivals.handled == before
    with pytest.raises(OSError, match="No such file"):
        watching(tmp_path / "in", clock)
        (tmp_path / "in").rmdir()
        arrivals.poll()
