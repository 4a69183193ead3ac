"""Files made to run code or to fill the memory: every reader refuses them, and nothing in them runs."""

import io
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from configs.errors import CheckpointError
from tests.faults import in_child, peak_mb
from utils.checkpoint import load_checkpoint, load_resumable, read_weights, verify
from utils.runs.files import LAST

ROOT = Path(__file__).resolve().parents[3]
CALL = b"cos\nmkdir\n"  # GLOBAL os mkdir: harmless enough to be called, and seen


def text(path: str) -> bytes:
    """BINUNICODE."""
    raw = path.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


# A pickle a calling or importing opcode: canary → bytes. If one ran, the folder `canary` would be there.
OPCODES: dict[str, Callable[[str], bytes]] = {
    "REDUCE": lambda c: b"\x80\x02" + CALL + text(c) + b"\x85R.",
    "INST": lambda c: b"(" + text(c) + b"ios\nmkdir\n.",
    "OBJ": lambda c: b"(" + CALL + text(c) + b"o.",
    "NEWOBJ": lambda c: b"\x80\x02" + CALL + text(c) + b"\x85\x81.",
    "NEWOBJ_EX": lambda c: b"\x80\x04" + CALL + text(c) + b"\x85}\x92.",
    "STACK_GLOBAL": lambda c: b"\x80\x04" + text("os") + text("mkdir") + b"\x93" + text(c) + b"\x85R.",
    "BUILD": lambda c: b"\x80\x02cfractions\nFraction\n)\x81}" + text("x") + text(c) + b"sb.",
    "EXT1": lambda c: b"\x80\x02\x82\x01" + text(c) + b"\x85R.",
    "PERSID": lambda c: b"P" + c.encode() + b"\n.",
    "BINPERSID": lambda c: b"\x80\x02" + text(c) + b"Q.",
    "eval of builtins": lambda c: b"cbuiltins\neval\n" + text(f"__import__('os').mkdir({c!r})") + b"\x85R.",
    "getattr chain": lambda c: (
        b"cbuiltins\ngetattr\ncimportlib\nimport_module\n"
        + text("os")
        + b"\x85R"
        + text("mkdir")
        + b"\x86R"
        + text(c)
        + b"\x85R."
    ),
    "memoised call": lambda c: b"\x80\x02" + CALL + b"q\x000h\x00" + text(c) + b"\x85R.",
    "module of torch": lambda c: b"ctorch.hub\nload_state_dict_from_url\n" + text(f"file://{c}") + b"\x85R.",
    "allowed rebuild of a type": lambda c: (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(" + CALL + b"cbuiltins\nlist\n" + text(c) + b"\x85}tR."
    ),
    "class of the project": lambda c: b"cutils.log\nlog_to_file\n" + text(c) + b"\x85R.",
}


def in_zip(data: bytes) -> bytes:
    """As torch.save lays a file out."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, content in (("data.pkl", data), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(f"archive/{name}", content)
    return held.getvalue()


def in_older_format(data: bytes) -> bytes:
    """Magic number, protocol, system: three pickles before the one that is the content."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001, "type_sizes": {}}]
    return b"".join(pickle.dumps(part, 2) for part in head) + data


def in_tar(data: bytes) -> bytes:
    """The format before that."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:") as archive:
        for name in ("storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return held.getvalue()


WRAPS = {"zip": in_zip, "older format": in_older_format, "bare pickle": bytes, "tar": in_tar}
READERS = {"load_checkpoint": load_checkpoint, "read_weights": read_weights, "load_resumable": load_resumable}


WORKING = ("REDUCE", "INST", "OBJ", "STACK_GLOBAL", "eval of builtins", "getattr chain", "memoised call")


@pytest.mark.parametrize("name", WORKING)
def test_the_pickles_would_work_if_they_were_unpickled(tmp_path, name):
    """Else the test below would prove nothing."""
    pickle.loads(OPCODES[name](str(tmp_path / "canary")))
    assert (tmp_path / "canary").is_dir()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_opcode_runs_anything(tmp_path):
    canary, path = tmp_path / "canary", tmp_path / LAST
    refused = 0
    for name, make in OPCODES.items():
        for wrap_name, wrap in WRAPS.items():
            for reader, read in READERS.items():
                path.write_bytes(wrap(make(str(canary))))
                try:
                    read(path)
                except CheckpointError as error:
                    assert LAST in str(error) and "weights_only" not in str(error), (name, wrap_name, error)
                    refused += 1
                assert not canary.exists(), (name, wrap_name, reader)
    print(f"malicious pickles refused: {refused} of {len(OPCODES) * len(WRAPS) * len(READERS)}, run: 0")
    assert refused == len(OPCODES) * len(WRAPS) * len(READERS)


# ---- files that are more than they look


def write_bomb(path: Path) -> None:
    """A torch file of half a megabyte whose tensor inflates to half a gigabyte."""
    torch.save({"model": {"w": torch.zeros(8)}, "format_version": 1}, path)
    with zipfile.ZipFile(path) as source:
        entries = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in entries.items():
            if not name.endswith("data/0"):
                archive.writestr(name, content)
                continue
            with archive.open(name, "w", force_zip64=True) as file:
                for _ in range(512):
                    file.write(bytes(1 << 20))


def write_torchscript(path: Path) -> None:
    """A program in a torch zip: torch.load would hand it to torch.jit.load."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version", "byteorder", "code/__torch__.py"):
            archive.writestr(f"archive/{name}", OPCODES["REDUCE"]("canary") if name.endswith("pkl") else b"3\n")
    path.write_bytes(held.getvalue())


def write_safetensors_with_a_huge_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 40) + b"{" * 100)


def write_safetensors_with_huge_shapes(path: Path) -> None:
    header = b'{"w": {"dtype": "F32", "shape": [1000000, 1000000, 1000], "data_offsets": [0, 4]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))


def write_huge_storage_in_the_older_format(path: Path) -> None:
    torch.save({"w": torch.zeros(8)}, path, _use_new_zipfile_serialization=False)
    raw = path.read_bytes()
    numel = raw.index(b"cpuq") + 5
    assert raw[numel : numel + 2] == b"\x07K" or b"K\x08" in raw
    path.write_bytes(raw.replace(b"K\x08N", b"\x8a\x06\x00\x00\x00\x00\x00\x01N"))


def write_entries_that_leave(path: Path) -> None:
    """Names that a naive extraction would write outside."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../../../tmp/escaped", b"x")
        archive.writestr("/etc/escaped", b"x")
        archive.writestr("archive/data.pkl", OPCODES["REDUCE"]("canary"))


def write_deep_nesting(path: Path) -> None:
    path.write_bytes(in_zip(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."))


def write_a_list_that_holds_itself(path: Path) -> None:
    path.write_bytes(in_zip(b"\x80\x02]q\x00h\x00a."))


FILES = {
    "endless.pth": write_a_list_that_holds_itself,
    "bomb.pth": write_bomb,
    "script.pth": write_torchscript,
    "header.safetensors": write_safetensors_with_a_huge_header,
    "shapes.safetensors": write_safetensors_with_huge_shapes,
    "storage.pth": write_huge_storage_in_the_older_format,
    "leaving.pth": write_entries_that_leave,
    "nested.pth": write_deep_nesting,
}


def read_all(folder: str | None) -> dict | None:
    """In a child: what is said of each file, and MiB by which its peak memory has grown; then with half a gigabyte."""
    if folder is None:
        return None
    warnings.simplefilter("error")
    before, refusals = peak_mb(), []
    for path in sorted(Path(folder).iterdir()):
        for read in (load_checkpoint, read_weights):
            try:
                read(path)
            except CheckpointError as error:
                refusals.append(f"{path.name} {read.__name__}: {error}")
    grown = peak_mb() - before
    held = b"." * (512 << 20)
    return {"refusals": refusals, "grown": grown, "shown": peak_mb() - before, "held": len(held)}


def test_files_that_inflate_or_hide_are_refused_in_bounded_memory(tmp_path):
    (tmp_path / "files").mkdir()
    for name, write in FILES.items():
        write(tmp_path / "files" / name)
    done = in_child(__name__, "read_all", None, str(tmp_path / "files"))["result"]
    refusals, grown, displayed = done["refusals"], done["grown"], done["shown"]
    print("\n".join(line.replace(str(tmp_path), "") for line in refusals), f"\ngrown by {grown:.0f} MiB")
    assert len(refusals) == 2 * len(FILES)
    assert any("more than its own size" in line for line in refusals)
    assert grown < 300 < displayed, "a bomb would not be shown"
    assert not (ROOT / "canary").exists() and not Path("/tmp/escaped").exists()


def test_a_folder_and_a_device_are_no_checkpoints(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path, tmp_path / "pipe.pth", Path("/dev/zero")):
        for read in (load_checkpoint, read_weights, verify):
            with pytest.raises(CheckpointError, match="does not exist"):
                read(path)
