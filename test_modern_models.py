#!/usr/bin/env python3
# PYTHON_ARGCOMPLETE_OK
"""Smoke-test every architecture: backbone × attention, built, trained a step, checkpointed, saved and read again.

python test_modern_models.py                      # all of them; prints a table
python test_modern_models.py --quick              # the smallest member of each family
python test_modern_models.py --backbone swin_tiny timm/hiera_tiny_224 --attention cross_scale --image-size 224

Each is built with random weights. A training step must give a finite gradient to every parameter; the same step with
gradient checkpointing, segments chosen automatically, must give the same loss, gradients and buffers bit for bit; a
network built anew must give the same logits after reading the saved weights.

Columns: seconds of one forward and backward pass of a batch of 2, plain → with checkpointing; MiB of activations saved
for the backward pass, plain → with checkpointing, as the plan foretells them. The exit code is 1 if any fails.
pytest collects the quick walk.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from utils.arguments import Parser
from utils.command_line import run_script, show, show_error

ATTENTION = ("none", "cbam", "multi_scale", "cross_scale")
CLASSES = 14
BATCH = 2
HEADINGS = ("backbone", "attention", "parameters", "seconds", "predicted MiB", "verdict")
ROW = "{:<24}{:<13}{:>11}{:>16}{:>17}  {}"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; torch is not imported for it."""
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_codes="0 all work, 1 some do not, 2 the command is wrong, 130 after Ctrl-C",
    )
    parser.add_argument("--backbone", metavar="NAME", nargs="+", help="only these, timm/<name> too; default: all")
    parser.add_argument("--attention", choices=ATTENTION, nargs="+", default=ATTENTION, help="only these; default: all")
    parser.add_argument("--quick", action="store_true", help="only the smallest member of each family")
    parser.add_argument(
        "--image-size",
        metavar="PIXELS",
        type=int,
        default=64,
        help="side of the images; volumes are PIXELS/2 × PIXELS × PIXELS; default: %(default)s",
    )
    return parser.parse_args(arguments)


@dataclass(frozen=True)
class Outcome:
    """What one architecture showed: pairs are plain and with checkpointing. problems: empty where all is well."""

    parameters: int
    seconds: tuple[float, float]
    saved_bytes: tuple[int, int]
    problems: tuple[str, ...]


def try_model(backbone: str, attention: str, image_size: int) -> Outcome:
    """Build; a step plain and with checkpointing; save, read into a second model and compare."""
    import torch

    torch.manual_seed(0)
    model = _wake(_build(backbone, attention, image_size)).train()
    x = torch.randn(BATCH, model.in_channels, *model.image_size)
    start = [buffer.clone() for buffer in model.buffers()]
    plain = _Step.of(model, x)
    for buffer, value in zip(model.buffers(), start):
        buffer.copy_(value)
    plan = model.enable_gradient_checkpointing()
    recomputed = _Step.of(model, x)

    problems = plain.problems() + plain.differences(recomputed)
    if not model.is_gradient_checkpointing_enabled():
        problems.append("checkpointing recomputes nothing")
    if model.attention_mode != attention:
        problems.append(f"built with attention {model.attention_mode}")
    problems += _read_again_problems(model, backbone, attention, image_size, x)
    return Outcome(
        sum(p.numel() for p in model.parameters()),
        (plain.seconds, recomputed.seconds),
        (plan.plain_bytes, plan.peak_bytes),
        tuple(problems),
    )


def _build(backbone: str, attention: str, image_size: int):
    from configs.default_config import Config
    from models import HybridMedNet, backbone_dims

    config = Config()
    config.MODEL["backbone"], config.MODEL["attention"], config.MODEL["pretrained"] = backbone, attention, False
    config.MODEL["num_classes"] = CLASSES
    square = (image_size, image_size)
    config.DATA["image_size"] = square if backbone_dims(backbone) == 2 else (image_size // 2, *square)
    return HybridMedNet(config)


def _wake(model):
    """Branches whose last weights begin at zero would hide what is before them: they get small ones."""
    from torch import nn

    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model


@dataclass
class _Step:
    """What a training step leaves: name → tensor of outputs, gradients (None where there is none) and buffers."""

    outputs: dict
    gradients: dict
    buffers: dict
    seconds: float

    @classmethod
    def of(cls, model, x) -> _Step:
        """One step from the same random state; the gradients are taken off the model."""
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits

        torch.manual_seed(1)
        target = (torch.rand(len(x), CLASSES) < 0.5).float()
        begin = time.perf_counter()
        logits = model(x)
        loss = binary_cross_entropy_with_logits(logits, target)
        loss.backward()
        seconds = time.perf_counter() - begin
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        model.zero_grad(set_to_none=True)
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        return cls({"logits": logits.detach(), "loss": loss.detach()}, gradients, buffers, seconds)

    def problems(self) -> list[str]:
        """What is wrong with the step by itself."""
        shape = tuple(self.outputs["logits"].shape)
        found = [f"logits have shape {shape}"] if shape != (BATCH, CLASSES) else []
        missed = [name for name, g in self.gradients.items() if g is None or not g.isfinite().all()]
        return found + _some(missed, "parameters without a finite gradient")

    def differences(self, other: _Step) -> list[str]:
        """What checkpointing has changed."""
        found = []
        for what in ("outputs", "gradients", "buffers"):
            mine, theirs = getattr(self, what), getattr(other, what)
            found += _some(
                [name for name in mine if not _same(mine[name], theirs[name])], f"{what} differ checkpointed"
            )
        return found


def _some(names: list[str], what: str) -> list[str]:
    return [f"{len(names)} {what}, {names[0]} for one"] if names else []


def _same(a, b) -> bool:
    import torch

    return a is b if a is None or b is None else torch.equal(a, b)


def _read_again_problems(model, backbone: str, attention: str, image_size: int, x) -> list[str]:
    """Save the weights and read them into a network built anew; logits of the two."""
    import torch

    from utils.checkpoint import load_checkpoint, save_checkpoint

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        expected = model.eval()(x)
        path = Path(folder) / "model.pth"
        save_checkpoint({"model": model.state_dict()}, path)
        with torch.device("meta"):  # nothing is there but what the file brings
            other = _build(backbone, attention, image_size).eval()
        saved = load_checkpoint(path)["model"]
        other.load_state_dict(saved, assign=True)
        _give_computed_buffers(other, {name: b for name, b in model.named_buffers() if name not in saved})
        return [] if torch.equal(other(x), expected) else ["logits differ after saving and loading"]


def _give_computed_buffers(model, buffers: dict) -> None:
    """Tables of positions and the like, which are computed when a network is built and not saved."""
    for name, buffer in buffers.items():
        module, _, last = name.rpartition(".")
        setattr(model.get_submodule(module), last, buffer)


def choose(wanted: list[str] | None, quick: bool) -> list[str]:
    """The backbones to try; SystemExit with code 2 for an unknown name."""
    from configs.errors import ModelError
    from models import check_backbone, list_backbones
    from models.backbones.families import smallest_of_each_family

    try:
        for name in wanted or ():
            check_backbone(name)
    except ModelError as error:
        show_error(error)
        raise SystemExit(2) from None
    names = wanted or list_backbones()
    return smallest_of_each_family(names) if quick else names


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 if any architecture fails, else 0, 2 for the user's errors."""
    return run_script(lambda: walk(parse_arguments(arguments)), arguments)


def walk(options: argparse.Namespace) -> int:
    """Each architecture in turn; the exit code."""
    backbones = choose(options.backbone, options.quick)
    show(ROW.format(*HEADINGS))
    failed = 0
    for backbone in backbones:
        for attention in options.attention:
            cells = _try_row(backbone, attention, options.image_size)
            failed += cells[-1] != "ok"
            show(ROW.format(backbone, attention, *cells))
            gc.collect()
    total = len(backbones) * len(options.attention)
    show(f"{total - failed} of {total} work at {options.image_size} × {options.image_size} pixels")
    return 1 if failed else 0


def _try_row(backbone: str, attention: str, image_size: int) -> tuple[str, ...]:
    """The cells behind backbone and attention; the last one is 'ok' or says what failed."""
    try:
        outcome = try_model(backbone, attention, image_size)
    except Exception as error:  # the table lists all: one failure does not stop the others
        return "–", "–", "–", f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    plain, recomputed = (n / 2**20 for n in outcome.saved_bytes)
    return (
        f"{outcome.parameters / 1e6:.1f} M",
        "{:.2f} → {:.2f}".format(*outcome.seconds),
        f"{plain:.1f} → {recomputed:.1f}",
        f"FAILED: {'; '.join(outcome.problems)}" if outcome.problems else "ok",
    )


def pytest_generate_tests(metafunc) -> None:
    """The quick walk; here, so that neither torch nor timm is imported when the file runs as a script.

    Every family with one attention mode in turn; its other modes are marked slow.
    """
    if "quick_backbone" not in metafunc.fixturenames:
        return
    import pytest

    from models import list_backbones
    from models.backbones.families import smallest_of_each_family

    families = smallest_of_each_family(list_backbones())
    walk = [
        pytest.param(family, mode, marks=[pytest.mark.slow] if (i - j) % len(ATTENTION) else [])
        for i, family in enumerate(families)
        for j, mode in enumerate(ATTENTION)
    ]
    metafunc.parametrize("quick_backbone, attention", walk)


def test_architecture(quick_backbone: str, attention: str) -> None:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # see tests/conftest.py
    try:
        assert try_model(quick_backbone, attention, image_size=64).problems == ()
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    sys.exit(main())
