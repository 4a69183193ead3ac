"""400 damaged checkpoints, 400 found; and a run goes on from the newest that is whole."""

import collections
import random
import zipfile
from pathlib import Path

import pytest
import torch

from configs.errors import CheckpointError, DamagedCheckpointError
from utils.checkpoint import load_checkpoint, load_resumable, read_weights, save_checkpoint, verify
from utils.runs.files import BEST, LAST, PREVIOUS


def content(step: int = 0) -> dict:
    generator = torch.Generator().manual_seed(step)
    weights = {f"layer{i}.weight": torch.randn(31, 17, generator=generator) for i in range(6)}
    return {"model": weights, "names": ["肺", "b"] * 20, "progress": {"global_step": step, "epoch": 0}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / LAST
    save_checkpoint(content(), path)
    return path


def flip_one_bit(raw: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(raw)
    damaged[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def flip_many_bytes(raw: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(raw)
    for position in rng.sample(range(len(raw)), rng.randint(2, 200)):
        damaged[position] ^= rng.randint(1, 255)
    return bytes(damaged)


def cut_anywhere(raw: bytes, rng: random.Random) -> bytes:
    return raw[: rng.randrange(len(raw))]


def cut_near_the_end(raw: bytes, rng: random.Random) -> bytes:
    """Within the digest, the end record, the directory."""
    return raw[: -rng.randint(1, 1500)]


def cut_the_beginning(raw: bytes, rng: random.Random) -> bytes:
    return raw[rng.randint(1, len(raw) - 1) :]


def cut_the_middle(raw: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(raw) - 1)
    return raw[:start] + raw[start + rng.randint(1, len(raw) - start - 1) :]


def lose_a_block(raw: bytes, rng: random.Random) -> bytes:
    """Zeros where the disk had not written yet."""
    start = rng.randrange(len(raw) // 2)
    block = raw[start : start + 512]
    return raw[:start] + bytes(512) + raw[start + 512 :] if any(block) else raw[:-512] + bytes(512)


def take_from_another(raw: bytes, rng: random.Random, other: bytes) -> bytes:
    """A block of another checkpoint of this very network at its place."""
    while True:
        start = rng.randrange(len(raw) - 64)
        block = other[start : start + rng.randint(64, 4096)]
        mixed = raw[:start] + block + raw[start + len(block) :]
        if mixed not in (raw, other):
            return mixed


def append(raw: bytes, rng: random.Random) -> bytes:
    return raw + rng.randbytes(rng.randint(1, 300))


KINDS = {
    flip_one_bit: 120,
    flip_many_bytes: 40,
    cut_anywhere: 60,
    cut_near_the_end: 50,
    cut_the_beginning: 20,
    cut_the_middle: 30,
    lose_a_block: 20,
    append: 20,
    take_from_another: 40,
}


def test_every_damaged_checkpoint_is_found(whole, tmp_path):
    raw = whole.read_bytes()
    save_checkpoint(content(1), tmp_path / "other.pth")
    other = (tmp_path / "other.pth").read_bytes()
    assert len(raw) == len(other), "the splices would differ in length alone"
    rng, path = random.Random(7), tmp_path / "damaged.pth"
    found, silent = collections.Counter(), []
    for damage, count in KINDS.items():
        for number in range(count):
            damaged = damage(raw, rng, other) if damage is take_from_another else damage(raw, rng)
            assert damaged != raw
            path.write_bytes(damaged)
            try:
                load_checkpoint(path)
            except DamagedCheckpointError as error:
                assert "damaged.pth" in str(error) and "\n" not in str(error)
                found[damage.__name__] += 1
            except CheckpointError as error:  # found, but would not be set aside
                silent.append((damage.__name__, number, str(error)))
            else:
                silent.append((damage.__name__, number, "read without a word"))
    print(f"damaged checkpoints found: {sum(found.values())} of {sum(KINDS.values())} {dict(found)}")
    assert not silent and sum(found.values()) == 400
    load_checkpoint(whole)


def test_torch_alone_would_not_find_them(whole, tmp_path):
    """Why there is a digest: most flipped bits are read without a word by torch, some by the zip's CRC too."""
    raw, rng, path = whole.read_bytes(), random.Random(7), tmp_path / "damaged.pth"
    missed, missed_by_crc = 0, 0
    for _ in range(60):
        path.write_bytes(flip_one_bit(raw, rng))
        try:
            torch.load(path, weights_only=True)
        except Exception:
            continue
        missed += 1
        with zipfile.ZipFile(path) as archive:
            missed_by_crc += archive.testzip() is None
    print(f"of 60 files with one flipped bit torch.load reads {missed}, of which the CRCs pass {missed_by_crc}")
    assert missed > 30 and missed_by_crc > 0


@pytest.mark.parametrize("read", [verify, read_weights])
def test_files_with_a_digest_are_checked_by_every_reader(whole, tmp_path, read):
    raw, path = bytearray(whole.read_bytes()), tmp_path / "x.pth"
    raw[-3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DamagedCheckpointError, match="digest"):
        read(path)


def test_a_file_of_torch_alone_is_verified_without_a_digest(tmp_path):
    path = tmp_path / "plain.pth"
    torch.save(content(), path)
    assert verify(path) is False
    assert read_weights(path).keys() == content()["model"].keys()


def test_a_checkpoint_whose_digest_was_taken_off_is_damaged(tmp_path):
    torch.save({"format_version": 1, **content()}, tmp_path / "bare.pth")
    with pytest.raises(DamagedCheckpointError, match="digest is missing"):
        load_checkpoint(tmp_path / "bare.pth")


# ---- going on after damage


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run after 30 steps: last 30, previous 25, epoch files 10 and 20."""
    for name, step in (("epoch_0001.pth", 10), ("epoch_0002.pth", 20), (PREVIOUS, 25), (LAST, 30)):
        save_checkpoint(content(step), tmp_path / name)
    return tmp_path


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def step_of(found: dict | None) -> int:
    assert found is not None
    return found["progress"]["global_step"]


def test_the_last_checkpoint_is_taken_where_it_is_whole(folder, caplog):
    assert step_of(load_resumable(folder)) == 30 and not caplog.records
    assert step_of(load_resumable(folder / "epoch_0001.pth")) == 10


@pytest.mark.parametrize(
    ("spoilt", "expected"),
    [
        ([LAST], 25),
        ([LAST, PREVIOUS], 20),
        ([LAST, PREVIOUS, "epoch_0002.pth"], 10),
        ([LAST, "epoch_0002.pth"], 25),
    ],
)
def test_the_newest_whole_checkpoint_is_taken(folder, caplog, spoilt, expected):
    kept = {}
    for name in spoilt:
        spoil(folder / name)
        kept[f"{name}.corrupt"] = (folder / name).read_bytes()
    assert step_of(load_resumable(folder)) == expected
    assert {path.name: path.read_bytes() for path in folder.glob("*.corrupt")} == kept
    assert (
        all(f"kept as '{name}.corrupt'" in caplog.text for name in spoilt)
        and f"optimizer step {expected}" in caplog.text
    )
    save_checkpoint(content(31), folder / LAST, folder / PREVIOUS)
    assert step_of(load_resumable(folder)) == 31


def test_an_epoch_file_can_be_newer_than_the_previous_one(folder):
    save_checkpoint(content(28), folder / "epoch_0003.pth")
    spoil(folder / LAST)
    assert step_of(load_resumable(folder)) == 28


def test_a_last_checkpoint_that_is_gone(folder, caplog):
    (folder / LAST).unlink()
    assert step_of(load_resumable(folder)) == 25 and "going on from 'previous.pth'" in caplog.text


def fingerprint(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_nothing_whole_is_left(folder):
    for path in folder.glob("*.pth"):
        spoil(path)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole.*epoch_0001\.pth\.corrupt"):
        load_resumable(folder)
    assert len(list(folder.glob("*.corrupt"))) == 4
    before = fingerprint(folder)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole.*last\.pth\.corrupt"):
            load_resumable(folder)
    assert fingerprint(folder) == before


def test_the_only_checkpoint_is_damaged(tmp_path):
    save_checkpoint(content(), tmp_path / LAST)
    for number in (1, 2):
        (tmp_path / LAST).write_bytes(b"x" * number)
        with pytest.raises(CheckpointError, match=r"not started over.*another LOGGING\.run_name$"):
            load_resumable(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"last.pth.corrupt", "last.pth.2.corrupt"}


EPOCH = '{"epoch": %d, "step": 5}\n'
REMAINS = {
    "a damaged file": {"previous.pth.corrupt": b"x"},
    "the best model": {BEST: b"x"},
    "two epochs": {"metrics.jsonl": (EPOCH % 1 + EPOCH % 2).encode()},
    "an epoch and results": {"metrics.jsonl": (EPOCH % 1 + '{"split": "test"}\n').encode(), BEST: b"x"},
    "a later epoch": {"metrics.jsonl": (EPOCH % 7).encode()},
    "an epoch and damage": {"metrics.jsonl": (EPOCH % 1).encode(), "last.pth.corrupt": b"x"},
}


@pytest.mark.parametrize("name", REMAINS)
def test_a_run_that_had_got_somewhere_is_not_begun_again(tmp_path, name):
    for file, raw in REMAINS[name].items():
        (tmp_path / file).write_bytes(raw)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="not started over") as refused:
            load_resumable(tmp_path)
    assert all(file in str(refused.value) for file in REMAINS[name]) and "init_from" not in str(refused.value)
    assert fingerprint(tmp_path) == REMAINS[name]


def test_the_way_on_names_best_weights_that_are_whole(tmp_path):
    save_checkpoint(content(), tmp_path / BEST)
    with pytest.raises(CheckpointError, match=rf"by MODEL\.init_from={tmp_path / BEST}$"):
        load_resumable(tmp_path)


def test_a_file_that_was_named_is_not_replaced_by_another(folder):
    spoil(folder / LAST)
    with pytest.raises(DamagedCheckpointError):
        load_resumable(folder / LAST)
    assert not list(folder.glob("*.corrupt"))


@pytest.mark.parametrize("files", [{}, {"metrics.jsonl": (EPOCH % 1).encode(), BEST: b"x"}], ids=["bare", "an epoch"])
def test_a_run_that_was_killed_before_its_first_checkpoint(tmp_path, files, caplog):
    for file, raw in files.items():
        (tmp_path / file).write_bytes(raw)
    assert load_resumable(tmp_path) is None and "the run starts from the beginning" in caplog.text


def test_what_is_not_damaged_is_not_set_aside(folder, monkeypatch):
    """A file of a newer program must not be renamed and stepped behind."""
    monkeypatch.setattr("utils.checkpoint.files.FORMAT_VERSION", 9)
    save_checkpoint(content(40), folder / LAST, folder / PREVIOUS)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="update it"):
        load_resumable(folder)
    assert not list(folder.glob("*.corrupt"))


def test_a_file_that_may_not_be_read_is_not_set_aside(folder, monkeypatch):
    """Root may read everything: what the system says to others is put into its mouth."""
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(CheckpointError, match="permission denied"):
        load_resumable(folder)
    assert not list(folder.glob("*.corrupt"))


def test_two_are_kept(tmp_path):
    for step in range(1, 4):
        save_checkpoint(content(step), tmp_path / LAST, tmp_path / PREVIOUS)
    assert [load_checkpoint(tmp_path / name)["progress"]["global_step"] for name in (LAST, PREVIOUS)] == [3, 2]
    assert {path.name for path in tmp_path.iterdir()} == {LAST, PREVIOUS}


def test_two_are_kept_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    test_two_are_kept(tmp_path)
