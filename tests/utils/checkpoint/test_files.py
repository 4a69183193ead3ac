"""utils.checkpoint: complete files or none, damage is found, and nothing but tensors and plain values passes."""

import collections
import datetime
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from configs.errors import CheckpointError
from utils.checkpoint import FORMAT_VERSION, load_checkpoint, read_weights, save_checkpoint
from utils.checkpoint import files as checkpoint


def content(seed: int = 0) -> dict:
    """What a training run keeps: weights, optimizer, random states, records."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.BatchNorm1d(30))
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.randn(4, 40)).square().sum().backward()
    optimizer.step()
    return {
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "python_rng": random.Random(seed).getstate(),
        "torch_rng": torch.get_rng_state(),
        "numpy_rng": np.random.default_rng(seed).bit_generator.state,
        "epoch": seed,
        "names": ["肺", "Größe"],
        "best": None,
        "auroc": float("nan"),
        "half": torch.randn(3, dtype=torch.bfloat16),
    }


def assert_same(a, b):
    """Equal types, keys, bits."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_same(x, y)
    else:
        assert a == b or (a != a and b != b)


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "run" / "last.pth"
    save_checkpoint(content(), path)
    return path


def test_what_is_saved_comes_back(saved):
    loaded = load_checkpoint(saved)
    assert loaded.pop("format_version") == FORMAT_VERSION
    assert_same(loaded, content())


def test_only_the_checkpoint_is_left_behind(saved):
    save_checkpoint(content(1), saved)
    assert [p.name for p in saved.parent.iterdir()] == ["last.pth"]
    assert load_checkpoint(saved)["epoch"] == 1


class Dies:
    """Stands in for torch.save: writes a part, then fails as a full disk does."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, obj, file) -> None:
        file.write(b"PK half a file")
        raise self.error


@pytest.mark.parametrize(
    "error, expected",
    [
        (OSError(28, "No space left on device"), CheckpointError),
        (RuntimeError("[enforce fail] unexpected pos"), CheckpointError),
        (pickle.PicklingError("no"), CheckpointError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=lambda v: getattr(v, "__name__", type(v).__name__),
)
def test_a_save_that_fails_leaves_the_old_file_alone(saved, monkeypatch, error, expected):
    before = saved.read_bytes()
    monkeypatch.setattr(checkpoint.torch, "save", Dies(error))
    with pytest.raises(expected, match=None if expected is KeyboardInterrupt else r"last\.pth"):
        save_checkpoint(content(1), saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["last.pth"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_late_leaves_the_old_file_alone(saved, monkeypatch, call):
    before = saved.read_bytes()

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(*((os, "fsync", fail) if call == "fsync" else (Path, "replace", fail)))
    with pytest.raises(CheckpointError, match="Input/output error"):
        save_checkpoint(content(1), saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["last.pth"]


def test_data_are_on_disk_before_the_name_changes(saved, monkeypatch):
    calls = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync") or fsync(fd))
    monkeypatch.setattr(Path, "replace", lambda self, to: calls.append("replace") or replace(self, to))
    save_checkpoint(content(1), saved)
    assert calls == ["fsync", "replace", "fsync"], "file to disk, rename, folder to disk"


NOT_PLAIN = {
    "NumPy scalar": np.float64(1),
    "NumPy array": np.zeros(3),
    "path": Path("a"),
    "date": datetime.date(2026, 11, 21),
    "defaultdict": collections.defaultdict(list),
    "module": torch.nn.Linear(1, 1),
    "function": lambda: None,
    "generator": (i for i in range(3)),
}


@pytest.mark.parametrize("value", NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_what_could_not_be_read_again_is_not_written(saved, value):
    before = saved.read_bytes()
    with pytest.raises(CheckpointError, match=r"last\.pth"):
        save_checkpoint({"odd": [value]}, saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["last.pth"]


class Runs:
    """Unpickled, it would call a function: the very thing that must not happen."""

    called = False

    def __reduce__(self):
        return (_mark, ())


def _mark() -> None:
    Runs.called = True


@pytest.mark.parametrize("read", [load_checkpoint, read_weights])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older format"])
def test_a_file_with_code_is_refused_and_does_not_run(tmp_path, read, zipped):
    path = tmp_path / "evil.pth"
    torch.save({"format_version": 1, "x": Runs()}, path, _use_new_zipfile_serialization=zipped)
    opened = zipped or read is read_weights  # a checkpoint of ours is a zip: nothing else is looked into
    with pytest.raises(CheckpointError, match=r"evil\.pth.*" + ("for safety" if opened else "never was")) as refused:
        read(path)
    assert "weights_only" not in str(refused.value)
    assert not Runs.called


def damaged_copies(raw: bytes):
    """One flipped bit at places all over the file's middle."""
    for position in range(len(raw) // 10, len(raw) * 9 // 10, len(raw) // 60):
        copy = bytearray(raw)
        copy[position] ^= 0x10
        yield position, bytes(copy)


def test_flipped_bits_are_found_or_harmless(saved):
    """torch.load alone reads most such files without a word."""
    raw, original = saved.read_bytes(), load_checkpoint(saved)
    found = 0
    for _, copy in damaged_copies(raw):
        saved.write_bytes(copy)
        try:
            loaded = load_checkpoint(saved)
        except CheckpointError as error:
            assert "last.pth" in str(error)
            found += 1
        else:
            assert_same(loaded, original)  # the bit was in the padding between entries
    assert found >= 30


def test_a_flipped_bit_in_the_weights_is_found(saved):
    raw = bytearray(saved.read_bytes())
    start = raw.find(content()["model"]["0.weight"].numpy().tobytes())
    assert start > 0
    raw[start + 2000] ^= 1
    saved.write_bytes(raw)
    assert torch.load(saved, weights_only=True)["epoch"] == 0, "torch notices by itself: the check can go"
    with pytest.raises(CheckpointError, match=r"damaged.*checksum"):
        load_checkpoint(saved)
    with pytest.raises(CheckpointError, match=r"damaged.*checksum"):
        read_weights(saved)


@pytest.mark.parametrize("fraction", [0, 0.001, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("read", [load_checkpoint, read_weights])
def test_a_truncated_file_is_found(saved, fraction, read):
    raw = saved.read_bytes()
    saved.write_bytes(raw[: int(len(raw) * fraction)])
    with pytest.raises(CheckpointError, match=r"last\.pth"):
        read(saved)


@pytest.mark.parametrize("raw", [b"hello", b"\x80\x02", b"\x89PNG\r\n\x1a\n" + bytes(99), b"PK\x03\x04" + bytes(50)])
@pytest.mark.parametrize("read", [load_checkpoint, read_weights])
def test_other_files_are_refused(tmp_path, raw, read):
    path = tmp_path / "other.pth"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"other\.pth"):
        read(path)


@pytest.mark.parametrize("read", [load_checkpoint, read_weights])
@pytest.mark.parametrize("name", ["none.pth", "none.safetensors", "folder"])
def test_a_missing_file_is_named(tmp_path, read, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match=f"{name}' (does not exist|cannot be read)"):
        read(tmp_path / name)


def test_weights_alone_are_no_checkpoint(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        load_checkpoint(path)
    torch.save(torch.zeros(2), path)
    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        load_checkpoint(path)


def test_a_newer_format_is_refused_by_its_number(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", FORMAT_VERSION + 1)
    save_checkpoint({}, tmp_path / "new.pth")
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=f"format {FORMAT_VERSION + 1}.*up to {FORMAT_VERSION}"):
        load_checkpoint(tmp_path / "new.pth")


@pytest.mark.parametrize("version", ["two", None])
def test_a_format_that_is_no_number_is_refused(tmp_path, version):
    torch.save({"format_version": version}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd\.pth"):
        load_checkpoint(tmp_path / "odd.pth")


# ---- read_weights

WEIGHTS = {"conv.weight": torch.arange(6.0).reshape(2, 3), "bn.num_batches_tracked": torch.tensor(3)}
WRAPPED = {
    "bare": lambda w: w,
    "model_state_dict": lambda w: {"epoch": 7, "model_state_dict": w, "val_auc": 0.8},
    "state_dict": lambda w: {"state_dict": w, "arch": "resnet18"},
    "model": lambda w: {"model": w, "optimizer": {"state": {}}},
    "state_dict.model": lambda w: {"state_dict": {"model": w}},
    "module.": lambda w: {f"module.{k}": v for k, v in w.items()},
    "_orig_mod.": lambda w: {f"_orig_mod.{k}": v for k, v in w.items()},
    "module._orig_mod.": lambda w: {f"module._orig_mod.{k}": v for k, v in w.items()},
    "all together": lambda w: {"state_dict": {f"_orig_mod.module.{k}": v for k, v in w.items()}},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older format"])
def test_weights_are_found_under_every_wrapping(tmp_path, wrap, zipped):
    path = tmp_path / "weights.pth"
    torch.save(wrap(WEIGHTS), path, _use_new_zipfile_serialization=zipped)
    assert_same(read_weights(str(path)), WEIGHTS)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_safetensors(tmp_path, prefix):
    path = tmp_path / "weights.safetensors"
    save_file({f"{prefix}{k}": v for k, v in WEIGHTS.items()}, path)
    loaded = read_weights(path)
    assert_same({k: loaded[k] for k in WEIGHTS}, WEIGHTS)
    assert loaded.keys() == WEIGHTS.keys()


@pytest.mark.parametrize("raw", [b"", b"hello", b"\x00" * 64])
def test_a_broken_safetensors_file(tmp_path, raw):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"broken\.safetensors' cannot be read"):
        read_weights(path)


@pytest.mark.parametrize(
    "held",
    [{}, {"epoch": 3}, [torch.zeros(1)], torch.zeros(1), {"state_dict": {}}, {"a": torch.zeros(1), "b": 2}],
    ids=str,
)
def test_a_file_without_weights(tmp_path, held):
    path = tmp_path / "empty.pth"
    torch.save(held, path)
    with pytest.raises(CheckpointError, match=r"empty\.pth' holds no model weights"):
        read_weights(path)


def test_weights_of_our_own_checkpoints(saved):
    assert_same(read_weights(saved), dict(content()["model"]))


def test_tied_weights_are_taken_and_spread_ones_are_not(saved):
    """Two names for one storage are no trick; a shape of a gigabyte over four bytes is, in our own files too."""
    tied, before = torch.arange(6.0), saved.read_bytes()
    save_checkpoint({"model": {"a": tied, "b": tied, "c": tied[2:]}}, saved.with_name("tied.pth"))
    assert load_checkpoint(saved.with_name("tied.pth"))["model"]["c"].tolist() == [2, 3, 4, 5]
    with pytest.raises(CheckpointError, match=r"a tensor \(250000000,\) of 1,000\.0 MB has 4 bytes in it"):
        save_checkpoint({"model": {"a": torch.zeros(1).expand(250_000_000)}}, saved)
    assert saved.read_bytes() == before
