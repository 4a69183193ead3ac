#!/usr/bin/env python3
# PYTHON_ARGCOMPLETE_OK
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
from utils.arguments import Parser, Values, whole_number
from utils.command_line import add_overrides, run_script, show
from utils.runs.folder import model_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np

    from configs.default_config import Config
    from data.cache.reader import AnyPreprocess
    from deployment.exported_network import Exportable
    from deployment.exported_studies import StudyForm
    from deployment.verification import Arrays
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
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Formats: " + "; ".join(f"{name} ({what})" for name, (_, what) in FORMATS.items()) + ". docs/export.md",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a run's folder, a .pth or .safetensors file")
    add("--format", choices=FORMATS, default="onnx", help="default: %(default)s; see below")
    add("--output", metavar="FILE", help="default: beside the checkpoint, of its name")
    add("--opset", metavar="N", type=int, help="of ONNX and what is made from it; default: 18")
    add(
        "--fixed-batch",
        metavar="N",
        type=int,
        action=Values,
        nargs="?",
        takes=whole_number,
        const=1,
        help="N images at a time (1); else any number",
    )
    add(
        "--images-only",
        metavar="KIND",
        action=Values,
        nargs="?",
        const="",
        help="of a model of studies: a file of single images "
        "without a table, of this kind of view where it joins views",
    )
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
    return run_script(lambda: export(parse_arguments(arguments)), arguments)


def export(options: argparse.Namespace) -> None:
    """The recipe: checkpoint → network with probabilities → file → the file's numbers beside the network's."""
    path = model_file(Path(options.checkpoint))
    target = output_file(options, path)

    from data.builder import saved_preprocess
    from data.run_images import training_images
    from deployment.formats import Request, export_file
    from deployment.metadata import export_metadata
    from deployment.onnx_format import OPSET
    from evaluation.fitting import stored_point
    from models.saved_model import load_models

    begin = time.perf_counter()
    (saved,) = load_models([path], options.set, EXPORT)
    if saved.class_names is None:
        raise ConfigError(f"'{path}' does not name its classes: --set DATA.class_names=[…], in the order of training")
    model, names = saved.model, saved.class_names
    form = study_form(options, path, saved)
    point = stored_point(saved.description.get("operating_point"), len(names))
    network, output = exported_network(options, saved, point, form)
    preprocess = saved_preprocess(saved.preprocessing, saved.config, model.backbone.mean, model.backbone.std)
    stored, decision = (point.as_dict() if point.split else None), point.decision(saved.task()).as_dict()
    coarse = coarse_names(saved.config, names)
    described = preprocess.as_dict()
    line = None if point.calibration is None else point.calibration.as_dict()
    metadata = export_metadata(saved.config, names, coarse, described, stored, decision, output, path, form, line)
    metadata |= {} if options.images_only is None else {"view_kind": options.images_only}
    image_shape = (model.in_channels, *model.image_size)
    request = Request(image_shape, metadata, options.fixed_batch, options.opset or OPSET, options.precision)
    settings = saved.config, path.parent, preprocess
    inputs, counts = compared(options, saved, settings, image_shape, form)
    static = options.quantize == "static"
    calibration = training_images(*settings, options.calibration_count, options.set) if static else None

    difference = export_file(network, options.format, target, request, inputs)
    logger.info("exported and compared in %.0f s", time.perf_counter() - begin)
    show(f"{target}: {options.format} in {options.precision}, gives {output} of {len(names)} classes")
    if form is not None:
        show(f"inputs: {', '.join(network.input_names())}; what they are: docs/export.md")
    show(f"largest |Δ| to the network: {difference:.1e}, over {counts}")
    if options.quantize:
        quantize(target, calibration, network, inputs)


def study_form(options: argparse.Namespace, path: Path, saved: SavedModel) -> StudyForm | None:
    """What a study is to the model; None of single images, and where only these are asked for.

    Raises ExportError for options that do not go with it.
    """
    from configs.section import settled
    from data.builder import saved_table
    from data.table_encoding import CLIP, Numeric
    from deployment.exported_studies import CategoricalColumn, NumericColumn, StudyForm

    settings, encoding = saved.config.MODEL, saved_table(saved.description.get("table"))
    of_views, of_table = settings.views.aggregator is not None, settings.table.fusion is not None
    if not of_views and not of_table:
        if options.images_only is not None:
            raise ExportError(f"--images-only: '{path}' takes single images anyway")
        return None
    if options.quantize:
        raise ExportError("--quantize is for models of single images: what int8 does to studies was not measured")
    if of_table and encoding is None:
        raise ExportError(f"'{path}' does not say how its table is encoded, so it cannot be exported")
    kinds = tuple(settings.view_kinds or ()) if of_views else ()
    if options.images_only is not None:
        if options.images_only not in (kinds or ("",)):
            raise ExportError(
                f"--images-only {options.images_only or '(no kind)'}: name the kind of view that the images are, of "
                f"{', '.join(kinds) or 'none: this model knows no kinds, leave it out'}"
            )
        return None
    columns = tuple(
        NumericColumn(one.name, one.mean, one.std, CLIP, one.low, one.high)
        if isinstance(one, Numeric)
        else CategoricalColumn(one.name, one.categories)
        for one in (encoding.columns if encoding else ())
    )
    views = settled(saved.config.DATA.max_views, "DATA.max_views") if of_views else 1
    return StudyForm(views, kinds, columns, encoding.indicators if encoding else ())


def compared(
    options: argparse.Namespace,
    saved: SavedModel,
    settings: tuple[Config, Path, AnyPreprocess],
    image_shape: Sequence[int],
    form: StudyForm | None,
) -> tuple[Arrays, str]:
    """(what the file and the network are given, in words): random numbers and the run's own images or studies."""
    import numpy as np

    from data.builder import saved_table
    from data.run_images import real_images, real_studies
    from deployment.exported_studies import of_form, random_studies
    from deployment.verification import random_images

    if form is None:
        real, origin = real_images(*settings, options.set)
        images = np.concatenate([random_images(image_shape), real])
        return images, f"{len(images) - len(real)} random images and {len(real)} of {origin}"
    encoding = saved_table(saved.description.get("table"))
    studies = real_studies(*settings, encoding, form.max_views, options.set)
    by_chance = random_studies(form, image_shape)
    if studies is not None:
        others, origin = of_form(form, *studies), "the run's data"
    else:
        images, origin = real_images(*settings, options.set)
        others, origin = random_studies(form, image_shape, images, seed=1), f"{origin}, with gaps by chance"
    inputs = tuple(np.concatenate(pair) for pair in zip(by_chance, others, strict=True))
    return inputs, f"{len(by_chance[0])} random studies with gaps and {len(others[0])} of {origin}"


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


def quantize(source: Path, calibration: Iterable[np.ndarray] | None, network: Exportable, images: Arrays) -> None:
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
    options: argparse.Namespace, saved: SavedModel, point: OperatingPoint, form: StudyForm | None
) -> tuple[Exportable, str]:
    """(the network with its last step, what its numbers are in words)."""
    from deployment.exported_network import ExportedNetwork
    from deployment.exported_studies import ExportedStudyNetwork, SingleViews
    from deployment.metadata import CALIBRATED

    line, exclusive, network = point.calibration, saved.config.MODEL.task == "multi_class", saved.model
    if options.calibrated and line is None:
        raise ExportError("--calibrated: the checkpoint has no calibration; evaluate.py --calibrate fits one")
    fitted = None if options.logits or line is None else line
    slopes, intercepts = (None, None) if fitted is None else (fitted.slopes, fitted.intercepts)
    given = exclusive, bool(options.logits), slopes, intercepts
    what = "logits" if options.logits else "probabilities" if fitted is None else CALIBRATED
    if form is not None:
        return ExportedStudyNetwork(network, form, *given), what
    if options.images_only is not None:
        kind = (saved.config.MODEL.view_kinds or []).index(options.images_only) if options.images_only else 0
        return ExportedNetwork(SingleViews(network, kind), *given), what
    return ExportedNetwork(network, *given), what


def coarse_names(config: Config, class_names: Sequence[str]) -> list[str]:
    """What the second output's classes are called; [] without one, and in old files, which do not say."""
    from data.labels import default_groups

    if not config.MODEL.hierarchical:
        return []
    names = list(config.MODEL.coarse_groups or (group.name for group in default_groups(class_names)))
    return names if len(names) == config.MODEL.num_coarse_classes else []


if __name__ == "__main__":
    sys.exit(main())
