"""A network from a file alone, of today and of the previous release; and the command line that looks and converts."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from configs.default_config import Config
from configs.errors import CheckpointError, ConfigError, HybridMedNetError
from models import HybridMedNet
from models.saved_model import load_model
from utils.checkpoint import __main__ as command
from utils.checkpoint import load_checkpoint, read_safetensors, read_weights, save_checkpoint, write_safetensors

LEGACY = Path(__file__).resolve().parents[2].parent / "shared" / "legacy"
NAMES = ["heart", "lung", "bone"]
PREPROCESSING = {"size": [32, 32], "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "stretch"}


def small_config(**model) -> Config:
    config = Config.from_overrides(
        ["MODEL.backbone=timm/test_resnet", "MODEL.pretrained=false", "DATA.image_size=32", "MODEL.fusion_channels=8"]
        + [f"MODEL.{key}={value}" for key, value in model.items()]
    )
    return config.resolve(tuple(NAMES))


def content(config: Config, model: HybridMedNet) -> dict:
    dumped = config.model_dump(mode="json")
    return {"config": dumped, "class_names": NAMES, "preprocessing": PREPROCESSING, "model": model.state_dict()}


@pytest.fixture(scope="module")
def model() -> HybridMedNet:
    torch.manual_seed(0)
    return HybridMedNet(small_config()).eval()


@pytest.fixture
def saved(tmp_path, model) -> Path:
    save_checkpoint(content(small_config(), model), tmp_path / "best_model.pth")
    return tmp_path / "best_model.pth"


X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def same_function(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    with torch.no_grad():
        return torch.equal(one(X), other(X))


def test_a_checkpoint_stands_alone(saved, model):
    loaded = load_model(saved)
    assert same_function(loaded.model, model) and not loaded.model.training
    assert (loaded.class_names, loaded.preprocessing, loaded.source) == (tuple(NAMES), PREPROCESSING, "checkpoint")
    assert loaded.config.MODEL.num_classes == 3 and loaded.config.image_shape() == (32, 32)


def test_the_averaged_weights_are_taken(tmp_path, model):
    shadow = {
        name: tensor * 0.5 if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    held = content(small_config(), model) | {"ema": {"updates": 3, "shadow": shadow}}
    save_checkpoint(held, tmp_path / "last.pth")
    loaded = load_model(tmp_path / "last.pth").model
    assert not same_function(loaded, model)
    assert all(torch.equal(tensor, shadow[name]) for name, tensor in loaded.state_dict().items())
    save_checkpoint(held | {"ema": None}, tmp_path / "last.pth")
    assert same_function(load_model(tmp_path / "last.pth").model, model)


def test_paths_that_a_file_names_are_not_opened(tmp_path, model):
    held = content(small_config(), model)
    held["config"]["MODEL"] |= {"pretrained": str(tmp_path / "trap.pth")}
    held["config"]["DATA"] |= {"data_dir": "/proc/self/mem", "labels_file": "/dev/zero"}
    save_checkpoint(held, tmp_path / "x.pth")
    (tmp_path / "trap.pth").mkdir()  # opening it would be an error
    loaded = load_model(tmp_path / "x.pth")
    assert same_function(loaded.model, model) and loaded.config.MODEL.pretrained is False


@pytest.mark.parametrize(
    ("section", "key", "value", "reason"),
    [
        ("MODEL", "backbone", "os.system", "unknown backbone"),
        ("MODEL", "backbone", "timm/hf-hub:someone/evil", "unknown backbone"),
        ("MODEL", "backbone", "timm/local-dir:/etc", "unknown backbone"),
        ("MODEL", "backbone", "__import__('os').system('true')", "unknown backbone"),
        ("MODEL", "dropout", "exec", "MODEL.dropout"),
        ("MODEL", "fusion_channels", 16, "of another shape"),
        ("TRAIN", "callback", "os:system", "unknown setting TRAIN.callback"),
    ],
)
def test_settings_that_name_code_or_another_network(tmp_path, model, section, key, value, reason):
    held = content(small_config(), model)
    held["config"][section][key] = value
    save_checkpoint(held, tmp_path / "x.pth")
    with pytest.raises(HybridMedNetError, match=reason):
        load_model(tmp_path / "x.pth")


def test_a_file_without_settings(tmp_path, model):
    held = content(small_config(), model)
    for lacking in ("config", "model"):
        save_checkpoint({key: value for key, value in held.items() if key != lacking}, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match="without weights or without its settings"):
            load_model(tmp_path / "x.pth")
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.pth")
    with pytest.raises(
        CheckpointError, match=r"neither a current nor a v1.x HybridMedNet checkpoint.*MODEL\.pretrained"
    ):
        load_model(tmp_path / "x.pth")


def test_class_names_must_be_as_many_as_classes(saved):
    save_checkpoint(load_checkpoint(saved) | {"class_names": ["a"]}, saved)
    with pytest.raises(ConfigError, match="3 classes"):
        load_model(saved)


# ---- safetensors


def test_safetensors_stand_alone_too(tmp_path, saved, model, capsys):
    path = tmp_path / "model.safetensors"
    assert command.main(["convert", str(saved), str(path)]) == 0
    loaded = load_model(path)
    assert same_function(loaded.model, model) and loaded.class_names == tuple(NAMES)
    assert loaded.preprocessing == PREPROCESSING and loaded.source == "safetensors"
    assert command.main(["convert", str(path), str(tmp_path / "back.pth")]) == 0
    assert same_function(load_model(tmp_path / "back.pth").model, model)
    assert "timm/test_resnet, 3 classes" in capsys.readouterr().out


def test_every_flipped_byte_of_our_safetensors_is_found(tmp_path):
    """In tensors and in what the metadata say; the format itself would not notice."""
    path = tmp_path / "x.safetensors"
    weights = {"a": torch.randn(3, 5), "b": torch.arange(4), "c": torch.randn(2, dtype=torch.bfloat16)}
    write_safetensors(path, weights, {"class_names": ["肺"], "config": {"MODEL": {"dropout": 0.5}}})
    raw, found = path.read_bytes(), 0
    tensors, description = read_safetensors(path)
    assert description == {"class_names": ["肺"], "config": {"MODEL": {"dropout": 0.5}}}
    assert all(torch.equal(tensors[name], weights[name]) for name in weights)
    unnoticed = 0
    for position in range(len(raw)):
        path.write_bytes(raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :])
        try:
            read = read_safetensors(path)
        except CheckpointError:
            found += 1
        else:
            unnoticed += 1
            assert all(torch.equal(read[0][name], weights[name]) for name in weights) and len(read[0]) == 3
            assert read[1].items() >= description.items()
    print(f"flipped bits found in a .safetensors file: {found} of {len(raw)}")
    assert unnoticed == len('pt"') - 1 + len("sha256"), "the value of 'format' and the name of the digest, no content"


def test_another_programs_safetensors_have_no_digest(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors", {"author": "someone", "epoch": "7"})
    tensors, description = read_safetensors(tmp_path / "x.safetensors")
    assert torch.equal(tensors["a"], torch.ones(2)) and description == {"author": "someone", "epoch": 7}


# ---- files of the previous release


@pytest.fixture(scope="module")
def recipe():
    if not LEGACY.is_dir():
        pytest.skip("no ../shared/legacy here: goldens of the previous release")
    spec = importlib.util.spec_from_file_location("make_checkpoint", LEGACY / "make_checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "variant, converted",
    [
        ("resnet34/flat", ".safetensors"),
        ("resnet50/hierarchical", ""),
        *(pytest.param("resnet34/flat", c, marks=pytest.mark.slow) for c in ("", ".pth")),
        *(pytest.param("resnet50/hierarchical", c, marks=pytest.mark.slow) for c in (".pth", ".safetensors")),
    ],
)
def test_an_old_file_needs_no_settings(tmp_path, recipe, variant, converted, capsys):
    """Backbone, head and sizes are read off the weights; converted or not, the logits are the golden ones."""
    old = tmp_path / "old_model.pth"
    torch.save({"epoch": 7, "model_state_dict": recipe.state_dict(variant), "val_auc": 0.8}, old)
    path = old
    if converted:
        path = tmp_path / f"new{converted}"
        names = ",".join(f"finding {k}" for k in range(14))
        settings = ["DATA.image_size=96", f"DATA.class_names=[{names}]"]
        assert command.main(["convert", str(old), str(path), "--set", *settings]) == 0
        assert "previous release" in capsys.readouterr().out
        assert load_model(path).preprocessing["size"] == [96, 96] and load_model(path).class_names[13] == "finding 13"
    loaded = load_model(path, [] if converted else ["DATA.image_size=96"])
    assert f"{loaded.config.MODEL.backbone}/{'hierarchical' if loaded.config.MODEL.hierarchical else 'flat'}" == variant
    with torch.no_grad():
        output = loaded.model(recipe.golden_input())
    golden = json.loads((LEGACY / "golden.json").read_text())[variant]
    for logits, expected in zip(output if isinstance(output, tuple) else (output,), golden.values(), strict=True):
        torch.testing.assert_close(logits, torch.tensor(expected), rtol=1e-4, atol=1e-4)


# ---- the command line


def test_inspect_shows_what_a_file_holds(saved, tmp_path, capsys):
    assert command.main(["inspect", str(saved)]) == 0
    message = capsys.readouterr().out
    for expected in (
        "format 1, digest fits",
        "MODEL.backbone timm/test_resnet",
        "heart",
        "preprocessing",
        "numbers (float32",
    ):
        assert expected in message
    torch.save({"epoch": 7, "state_dict": {"w": torch.zeros(2)}, "huge": list(range(10**5))}, tmp_path / "other.pth")
    assert command.main(["inspect", str(tmp_path / "other.pth")]) == 0
    message = capsys.readouterr().out
    assert "torch file, no digest" in message and "a list of 100000" in message and len(message) < 1000
    save_file({"w": torch.zeros(2)}, tmp_path / "w.safetensors")
    assert command.main(["inspect", str(tmp_path / "w.safetensors")]) == 0
    assert "1 tensors, 2 numbers" in capsys.readouterr().out


@pytest.mark.skipif(not LEGACY.is_dir(), reason="no ../shared/legacy here: a file with the previous release's Config")
def test_inspect_shows_a_config_of_the_previous_release(capsys):
    with pytest.warns(UserWarning, match="previous release"):
        assert command.main(["inspect", str(LEGACY / "old_config_only.pth")]) == 0
    assert "config: a Config of the previous release, which changes no settings" in capsys.readouterr().out


def test_verify_names_the_damaged_ones(saved, tmp_path, capsys):
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(saved.read_bytes()[:-7])
    torch.save({"a": 1}, tmp_path / "plain.pth")
    assert command.main(["verify", str(saved), str(tmp_path / "plain.pth")]) == 0
    assert "CRC and digest" in capsys.readouterr().out
    assert command.main(["verify", str(damaged), str(saved)]) == 2
    message = capsys.readouterr()
    assert f"{saved}: whole" in message.out and "damaged.pth" in message.err and "Traceback" not in message.err


VERIFIED = {  # file → how it is written, what is said of it, the exit code
    "ours.pth": (lambda p: save_checkpoint({"model": W}, p), "whole (CRC and digest)", 0),
    "torch.pth": (lambda p: torch.save(W, p), "whole (CRC; it has no digest)", 0),
    "older.pth": (lambda p: torch.save(W, p, _use_new_zipfile_serialization=False), "without checksums", 0),
    "ours.safetensors": (lambda p: write_safetensors(p, W, {}), "whole (digest)", 0),
    "theirs.safetensors": (lambda p: save_file(W, p), "readable (it has no digest", 0),
    "bare.pth": (lambda p: torch.save({"format_version": 1, "model": W}, p), "its digest is missing", 2),
    "bare_older.pth": (
        lambda p: torch.save({"format_version": 1, "model": W}, p, _use_new_zipfile_serialization=False),
        "its digest is missing",
        2,
    ),
    "text.pth": (lambda p: p.write_text("hello\n" * 99), "it is no checkpoint", 2),
    "empty.pth": (lambda p: p.write_bytes(b""), "it is empty", 2),
    "random.pth": (lambda p: p.write_bytes(bytes(range(1, 250)) * 40), "it is no checkpoint", 2),
    "pickle.pth": (lambda p: p.write_bytes(b"\x80\x02" + bytes(99)), "pickle", 2),
    "cut.pth": (lambda p: (torch.save(W, p), p.write_bytes(p.read_bytes()[:300])), "its end is missing", 2),
    "cut_older.pth": (
        lambda p: (torch.save(W, p, _use_new_zipfile_serialization=False), p.write_bytes(p.read_bytes()[:-5])),
        "unexpected EOF",
        2,
    ),
    "tar.pth": (lambda p: p.write_bytes(bytes(257) + b"ustar" + bytes(900)), "it is a tar", 2),
    "flipped.safetensors": (lambda p: (write_safetensors(p, W, {}), flip_last(p)), "does not fit its digest", 2),
    "text.safetensors": (lambda p: p.write_text("hello"), "cannot be read", 2),
}
W = {"w": torch.arange(8.0)}


def flip_last(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))


def test_verify_says_what_it_could_check(tmp_path, capsys):
    for name, (write, words, code) in VERIFIED.items():
        write(tmp_path / name)
        assert command.main(["verify", str(tmp_path / name)]) == code, name
        out, err = capsys.readouterr()
        assert words in (err if code else out) and name in out + err, (name, out, err)
        assert (out == "") is bool(code) and (out + err).count("\n") == 1
    assert command.main(["verify", *(str(tmp_path / name) for name in [*VERIFIED, "gone.pth"])]) == 2
    out, err = capsys.readouterr()
    refused = sum(code == 2 for *_, code in VERIFIED.values()) + 1
    assert (out.count("\n"), err.count("\n")) == (len(VERIFIED) + 1 - refused, refused), "all are looked at"


@pytest.mark.parametrize("name", [name for name, (_, _, code) in VERIFIED.items() if code])
def test_what_verify_refuses_gives_no_weights(tmp_path, name):
    VERIFIED[name][0](tmp_path / name)
    with pytest.raises(CheckpointError, match=name):
        read_weights(tmp_path / name)


def test_inspect_says_of_a_text_that_it_is_no_checkpoint(tmp_path, capsys):
    (tmp_path / "notes.pth").write_text("gone fishing")
    assert command.main(["inspect", str(tmp_path / "notes.pth")]) == 2
    assert "it is no checkpoint" in capsys.readouterr().err


def test_inspect_shows_what_safetensors_say(tmp_path, saved, capsys):
    path = tmp_path / "model.safetensors"
    assert command.main(["convert", str(saved), str(path)]) == command.main(["inspect", str(path)]) == 0
    message = capsys.readouterr().out
    for expected in (
        "safetensors, digest fits",
        "MODEL.backbone timm/test_resnet",
        "heart",
        "preprocessing",
        "(float32",
    ):
        assert expected in message, message


@pytest.mark.parametrize("arguments", [["inspect", "nothing.pth"], ["convert", "nothing.pth", "x.pth"]])
def test_errors_are_one_line(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "does not exist" in error
