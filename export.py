#!/usr/bin/env python3
"""Write a trained model as a file for other programs, and prove that it computes what the network does.

python export.py checkpoints/<run>                                # best_model.onnx beside the checkpoint
python export.py model.pth --quantize static --calibration-count 256    # model.int8.onnx beside model.onnx
python export.py model.pth --format openvino --output hospital/model.xml
python export.py model.pth --format torch_export --precision bf16 --fixed-batch 8 --logits
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import ConfigError, ExportError
from configs.followed import EXPORT
from utils.command_line import add_overrides, run_script, show
from utils.runs.folder import model_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np

    from configs.default_config import Config
    from deployment.exported_network import ExportedNetwork
    from evaluation.operating_points import OperatingPoint
    from models.saved_model import SavedModel

logger = logging.getLogger("export")

# How files of a format end, and what it is.
FORMATS = {
    "onnx": (".onnx", "by torch's dynamo exporter; for onnxruntime and most others"),
    "torch_export": (".pt2", "torch.export's program, for PyTorch without this project's code"),
    "torchscript": (".torchscript", "deprecated by PyTorch: for programs that take nothing else"),
    "openvino": (".xml", "with its .bin; needs the package openvino"),
    "tensorrt": (".engine", "for the GPU it is built on; needs the package tensorrt"),
}
FROM_ONNX = ("onnx", "openvino", "tensorrt")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; torch is not imported for it."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Formats: " + "; ".join(f"{name} ({what})" for name, (_, what) in FORMATS.items()) + ". docs/export.md",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a run's folder, a .pth or .safetensors file")
    add("--format", choices=FORMATS, default="onnx", help="default: %(default)s; see below")
    add("--output", metavar="FILE", help="default: beside the checkpoint, of its name")
    add("--opset", metavar="N", type=int, help="of ONNX and what is made from it; default: 18")
    add("--fixed-batch", metavar="N", type=int, nargs="?", const=1, help="N images at a time (1); else any number")
    add("--precision", choices=("fp32", "fp16", "bf16"), default="fp32", help="of the network inside (%(default)s)")
    add("--quantize", choices=("dynamic", "static"), help="an int8 file beside the ONNX file: docs/compression.md")
    add("--calibration-count", metavar="N", type=int, default=128, help="training images for static (%(default)s)")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--calibrated", action="store_true", help="insist on calibrated probabilities")
    output.add_argument("--logits", action="store_true", help="logits instead of probabilities")
    add_overrides(parser, EXPORT)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Export; returns the exit code: 0, 2 for the user's errors, 130 after Ctrl-C."""
    options = parse_arguments(arguments)
    return run_script(lambda: export(options))


def export(options: argparse.Namespace) -> None:
    """The recipe: checkpoint → network with probabilities → file → the file's numbers beside the network's."""
    path = model_file(Path(options.checkpoint))
    target = output_file(options, path)

    import numpy as np

    from data.builder import saved_preprocess
    from data.run_images import real_images, training_images
    from deployment.formats import Request, export_file
    from deployment.metadata import export_metadata
    from deployment.onnx_format import OPSET
    from deployment.verification import random_images
    from evaluation.fitting import stored_point
    from models.saved_model import load_models

    begin = time.perf_counter()
    (saved,) = load_models([path], options.set, EXPORT)
    if saved.class_names is None:
        raise ConfigError(f"'{path}' does not name its classes: --set DATA.class_names=[…], in the order of training")
    model, names = saved.model, saved.class_names
    point = stored_point(saved.description.get("operating_point"), len(names))
    network, output = exported_network(options, saved, point)
    preprocess = saved_preprocess(saved.preprocessing, saved.config, model.backbone.mean, model.backbone.std)
    stored, decision = (point.as_dict() if point.split else None), point.decision(saved.task()).as_dict()
    coarse = coarse_names(saved.config, names)
    described = preprocess.as_dict()
    metadata = export_metadata(saved.config, names, coarse, described, stored, decision, output, path)
    image_shape = (model.in_channels, *model.image_size)
    request = Request(image_shape, metadata, options.fixed_batch, options.opset or OPSET, options.precision)
    real, origin = real_images(saved.config, path.parent, preprocess, options.set)
    images = np.concatenate([random_images(image_shape), real])
    settings = saved.config, path.parent, preprocess, options.calibration_count, options.set
    calibration = training_images(*settings) if options.quantize == "static" else None

    difference = export_file(network, options.format, target, request, images)
    logger.info("exported and compared in %.0f s", time.perf_counter() - begin)
    show(f"{target}: {options.format} in {options.precision}, gives {output} of {len(names)} classes")
    counts = f"{len(images) - len(real)} random images and {len(real)} of {origin}"
    show(f"largest |Δ| to the network: {difference:.1e}, over {counts}")
    if options.quantize:
        quantize(target, calibration, network, images)


def output_file(options: argparse.Namespace, checkpoint: Path) -> Path:
    """Where to write. Raises ExportError for options that do not go together, before anything is loaded."""
    suffix = FORMATS[options.format][0]
    target = Path(options.output) if options.output else checkpoint.with_suffix(suffix)
    if target.suffix != suffix:
        raise ExportError(f"--output '{target}': the name of a file of format {options.format} ends in {suffix}")
    if options.opset is not None and options.format not in FROM_ONNX:
        raise ExportError(f"--opset is for --format {', '.join(FROM_ONNX)}, not for {options.format}")
    if options.fixed_batch is not None and options.fixed_batch < 1:
        raise ExportError(f"--fixed-batch {options.fixed_batch}: at least 1 image")
    if options.quantize and (options.format, options.precision) != ("onnx", "fp32"):
        raise ExportError("--quantize makes an int8 file of a float32 ONNX file: --format onnx, --precision fp32")
    if options.calibration_count < 1:
        raise ExportError(f"--calibration-count {options.calibration_count}: at least 1 image")
    if options.format == "torchscript":
        logger.warning(
            "TorchScript is deprecated by PyTorch: --format onnx or torch_export will be readable for longer"
        )
    return target


def quantize(
    source: Path, calibration: Iterable[np.ndarray] | None, network: ExportedNetwork, images: np.ndarray
) -> None:
    """Make the int8 file beside an ONNX file, static where there are images, and say how far its numbers are off."""
    import math

    from deployment.onnx_format import open_onnx
    from deployment.quantization import quantize_dynamic, quantize_static
    from deployment.verification import compare

    target = source.with_suffix(".int8.onnx")
    if calibration is not None:
        count = quantize_static(source, target, calibration)
    else:
        count = quantize_dynamic(source, target)
    difference = compare(network, open_onnx(target), images)
    if not math.isfinite(difference):
        target.unlink()
        raise ExportError(f"'{target}' gave numbers that are not finite; it was removed")
    what = f"dynamic, {count} matrix products" if calibration is None else f"static, {count} tensors of fixed range"
    show(f"{target}: int8 {what}, {target.stat().st_size / 1e6:.1f} MB")
    show(
        f"largest |Δ| to the network: {difference:.1e}; what that does to AUROC is to be measured: docs/compression.md"
    )


def exported_network(
    options: argparse.Namespace, saved: SavedModel, point: OperatingPoint
) -> tuple[ExportedNetwork, str]:
    """(the network with its last step, what its numbers are in words)."""
    from deployment.exported_network import ExportedNetwork

    line, exclusive = point.calibration, saved.config.MODEL.task == "multi_class"
    if options.calibrated and line is None:
        raise ExportError("--calibrated: the checkpoint has no calibration; evaluate.py --calibrate fits one")
    if options.logits:
        return ExportedNetwork(saved.model, exclusive, logits=True), "logits"
    if line is None:
        return ExportedNetwork(saved.model, exclusive), "probabilities"
    return ExportedNetwork(saved.model, exclusive, False, line.slopes, line.intercepts), "calibrated probabilities"


def coarse_names(config: Config, class_names: Sequence[str]) -> list[str]:
    """What the second output's classes are called; [] without one, and in old files, which do not say."""
    from data.labels import default_groups

    if not config.MODEL.hierarchical:
        return []
    names = list(config.MODEL.coarse_groups or (group.name for group in default_groups(class_names)))
    return names if len(names) == config.MODEL.num_coarse_classes else []


if __name__ == "__main__":
    sys.exit(main())
