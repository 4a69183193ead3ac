"""The precision benchmark: its verdicts and table on made-up figures, and one small measurement."""

import pytest
import torch

from benchmarks import precision
from training.precision import Precision

CPU = torch.device("cpu")


def row(auto="float32 channels_last", **seconds) -> dict:
    names = {"f": "float32", "fl": "float32 channels_last", "bl": "bf16 channels_last", "c": "compiled"}
    return {
        "name": "net",
        "batch": 2,
        "seconds": {names[key]: value for key, value in seconds.items()},
        "auto": auto,
        "probe_seconds": 1.0,
        "compilation": "12 s",
    }


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row(f=1.0, fl=0.8)], [True, True, None]),
        ([row(f=1.0, fl=1.04), row(f=1.0, fl=0.5)], [True, True, None]),
        ([row(f=1.0, fl=1.06)], [False, True, None]),
        ([row(f=0.5, fl=1.0)], [False, False, None]),
        ([row(f=1.0, fl=0.8, c=0.1)], [True, True, None]),  # auto does not compile
        ([row(f=1.0, fl=0.8, bl=0.7)], [True, False, False]),
        ([row("bf16 channels_last", f=1.7, fl=1.2, bl=1.0)], [True, True, True]),
        ([row("bf16 channels_last", f=1.7, fl=1.2, bl=1.0), row("float32", f=1.0, bl=0.99)], [True, True, False]),
        ([row("bf16 channels_last", f=1.7, bl=1.0), row("float32", f=1.0)], [True, True, None]),
    ],
)
def test_verdicts(rows, expected):
    assert [enough for _, _, enough in precision.verdicts(rows)] == expected


def test_cells_are_milliseconds_an_image_with_the_fastest_in_bold():
    columns = precision.columns_of([row(f=0.2, fl=0.1), row(f=0.2, c=0.05)])
    assert columns == ["float32", "float32 channels_last", "compiled"]
    assert precision.cells(row(f=0.2, fl=0.1), columns)[1:6] == [
        "100.0",
        "**50.0**",
        "–",
        "float32 channels_last",
        "2.00×",
    ]


@pytest.mark.parametrize(
    ("mixed", "last", "expected"),
    [(False, False, "float32"), (False, True, "float32 channels_last"), ("bf16", True, "bf16 channels_last")],
)
def test_settings_name_a_variant(mixed, last, expected):
    assert precision.chosen_name(mixed, last) == expected


@pytest.mark.parametrize("bf16", [False, True])
def test_bf16_is_compared_where_the_hardware_has_it(monkeypatch, bf16):
    monkeypatch.setattr(precision, "choose_precision", lambda *_: Precision("cpu", torch.bfloat16 if bf16 else None))
    kinds = ["float32", "bf16"] if bf16 else ["float32"]
    assert list(precision.variants(CPU)) == [name for kind in kinds for name in (kind, f"{kind} channels_last")]


def test_what_the_compiler_cannot_do_is_said():
    def fails():
        raise RuntimeError("no such\noperator")

    assert precision.compilation(fails) == "failed: RuntimeError: no such operator"
    assert precision.compilation(lambda: None) == "0 s"


def test_a_small_measurement(tmp_path, monkeypatch):
    """All its parts run; the step trains a copy and leaves the network as it is."""
    monkeypatch.setattr(precision, "PAGE", tmp_path / "precision.md")
    options = ["--backbone", "mobilenetv3_small", "--size", "32", "--batch", "2", "--repeats", "1", "--compile", "no"]
    assert precision.main([*options, "--device", "cpu"]) in (0, 1)  # what is fastest is the machine's affair
    text = (tmp_path / "precision.md").read_text(encoding="utf-8")
    assert "| mobilenetv3_small | " in text and "mobilenetv3_small not compiled" in text
    assert (tmp_path / "precision.json").exists()


def test_a_step_trains_a_copy():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 14, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    before = model[0].weight.detach().clone()
    seen = []
    model.register_forward_hook(lambda module, inputs, y: seen.append(module[0].weight.detach().clone()))
    step = precision.training_step(model, precision.variants(CPU)["float32 channels_last"], torch.randn(2, 3, 4, 4))
    step()
    step()
    assert torch.equal(model[0].weight, before) and model[0].weight.grad is None
    assert torch.equal(seen[0], before) and not torch.equal(seen[1], before)
