#!/usr/bin/env python3
"""Smoke-test every architecture: backbone × attention, built, trained a step, saved and read again.

python test_modern_models.py                      # all of them; prints a table
python test_modern_models.py --quick              # the smallest member of each family
python test_modern_models.py --backbone swin_tiny --attention cross_scale --image-size 224

pytest collects the quick walk.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ATTENTION = ("none", "cbam", "multi_scale", "cross_scale")
CLASSES = 14
BATCH = 2
# Sizes from small to large, as names end.
SIZES = ("tiny", "t", "s", "small", "m", "base", "b", "l", "large")
HEADINGS = ("backbone", "attention", "parameters", "forward + backward", "verdict")
ROW = "{:<24}{:<13}{:>11}{:>20}  {}"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; torch is not imported for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", metavar="NAME", nargs="+", help="only these; default: all")
    parser.add_argument("--attention", choices=ATTENTION, nargs="+", default=ATTENTION, help="only these; default: all")
    parser.add_argument("--quick", action="store_true", help="only the smallest member of each family")
    parser.add_argument("--image-size", metavar="PIXELS", type=int, default=64, help="default: %(default)s")
    return parser.parse_args(arguments)


def family_and_size(name: str) -> tuple[str, int]:
    """('swin', 0) for swin_tiny, ('resnet', 50) for resnet50."""
    family, _, size = name.rpartition("_")
    if size in SIZES:
        return family, SIZES.index(size)
    match = re.fullmatch(r"(.*?)(\d*)", name, re.DOTALL)
    assert match is not None
    return match[1], int(match[2] or 0)


def smallest_of_each_family(names: Iterable[str]) -> list[str]:
    """One name a family: resnet18 of the ResNets, swin_tiny of the Swins, …"""
    smallest: dict[str, str] = {}
    for name in sorted(names, key=lambda name: family_and_size(name)[1]):
        smallest.setdefault(family_and_size(name)[0], name)
    return sorted(smallest.values())


@dataclass(frozen=True)
class Outcome:
    """What one architecture showed. problems: empty where all is well."""

    parameters: int
    seconds: float
    problems: tuple[str, ...]


def try_model(backbone: str, attention: str, image_size: int) -> Outcome:
    """Build, run forward and backward, save, read into a second model and compare."""
    import torch

    torch.manual_seed(0)
    model = _build(backbone, attention, image_size).train()
    x = torch.randn(BATCH, 3, image_size, image_size)
    begin = time.perf_counter()
    logits = model(x)
    target = (torch.rand(logits.shape) < 0.5).float()
    torch.nn.functional.binary_cross_entropy_with_logits(logits, target).backward()
    seconds = time.perf_counter() - begin

    problems = []
    if logits.shape != (BATCH, CLASSES):
        problems.append(f"logits have shape {tuple(logits.shape)}")
    missed = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    if missed:
        problems.append(f"{len(missed)} parameters without a finite gradient, {missed[0]} for one")
    if model.attention_mode != attention:
        problems.append(f"built with attention {model.attention_mode}")
    problems += _read_again_problems(model, backbone, attention, x)
    return Outcome(sum(p.numel() for p in model.parameters()), seconds, tuple(problems))


def _build(backbone: str, attention: str, image_size: int):
    from configs.default_config import Config
    from models import HybridMedNet

    config = Config()
    config.MODEL["backbone"], config.MODEL["attention"], config.MODEL["pretrained"] = backbone, attention, False
    config.MODEL["num_classes"], config.DATA["image_size"] = CLASSES, image_size
    return HybridMedNet(config)


def _read_again_problems(model, backbone: str, attention: str, x) -> list[str]:
    """Save the weights, free the model's gradients, and load them into a network built anew."""
    import torch

    from utils.checkpoint import load_checkpoint, save_checkpoint

    model.zero_grad(set_to_none=True)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        expected = model.eval()(x)
        path = Path(folder) / "model.pth"
        save_checkpoint({"model": model.state_dict()}, path)
        other = _build(backbone, attention, x.shape[-1]).eval()
        other.load_state_dict(load_checkpoint(path)["model"])
        return [] if torch.equal(other(x), expected) else ["logits differ after saving and loading"]


def choose(wanted: list[str] | None, quick: bool) -> list[str]:
    """The backbones to try; SystemExit with code 2 for an unknown name."""
    from models import list_backbones

    names = list_backbones()
    unknown = sorted(set(wanted or ()) - set(names))
    if unknown:
        print(f"error: unknown backbone {', '.join(unknown)}; there are: {', '.join(names)}", file=sys.stderr)
        raise SystemExit(2)
    names = wanted or names
    return smallest_of_each_family(names) if quick else names


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 if any architecture fails, else 0."""
    options = parse_arguments(arguments)
    backbones = choose(options.backbone, options.quick)
    print(ROW.format(*HEADINGS))
    failed = 0
    for backbone in backbones:
        for attention in options.attention:
            parameters, seconds, verdict = "–", "–", "ok"
            try:
                outcome = try_model(backbone, attention, options.image_size)
            except Exception as error:  # a table of all is the point: the next one is tried whatever this one did
                verdict = f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            else:
                parameters, seconds = f"{outcome.parameters / 1e6:.1f} M", f"{outcome.seconds:.2f} s"
                verdict = f"FAILED: {'; '.join(outcome.problems)}" if outcome.problems else "ok"
            failed += verdict != "ok"
            print(ROW.format(backbone, attention, parameters, seconds, verdict), flush=True)
    total = len(backbones) * len(options.attention)
    print(f"{total - failed} of {total} work at {options.image_size} × {options.image_size} pixels")
    return 1 if failed else 0


def pytest_generate_tests(metafunc) -> None:
    """The quick walk; here, so that neither torch nor timm is imported when the file runs as a script."""
    if "quick_backbone" in metafunc.fixturenames:
        from models import list_backbones

        metafunc.parametrize("quick_backbone", smallest_of_each_family(list_backbones()))
        metafunc.parametrize("attention", ATTENTION)


def test_architecture(quick_backbone: str, attention: str) -> None:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # see tests/conftest.py
    try:
        assert try_model(quick_backbone, attention, image_size=64).problems == ()
    finally:
        torch.set_num_threads(threads)


def test_the_table_and_the_exit_code(capsys, monkeypatch) -> None:
    def pretend(backbone: str, attention: str, image_size: int) -> Outcome:
        if attention == "cbam":
            raise ValueError("no such thing")
        return Outcome(11_000_000, 0.5, ("odd",) if attention == "multi_scale" else ())

    monkeypatch.setitem(globals(), "try_model", pretend)
    assert main(["--backbone", "resnet18", "--attention", "none"]) == 0
    assert main(["--backbone", "resnet18"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["resnet18", "none", "11.0", "M", "0.50", "s", "ok"]
    assert [line.endswith("ok") for line in lines[4:8]] == [True, False, False, True]
    assert lines[-1] == "2 of 4 work at 64 × 64 pixels"


def test_an_unknown_backbone_stops_the_script(capsys) -> None:
    import pytest

    with pytest.raises(SystemExit) as caught:
        main(["--backbone", "resnet19"])
    assert caught.value.code == 2 and "resnet18" in capsys.readouterr().err


def test_help_does_not_wait_for_torch() -> None:
    import subprocess

    code = "import sys, test_modern_models as t; t.parse_arguments([]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
