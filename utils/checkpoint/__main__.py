# PYTHON_ARGCOMPLETE_OK
"""Look at checkpoint files, check them, convert them.

python -m utils.checkpoint inspect FILE             what a file holds; nothing in it is run
python -m utils.checkpoint verify FILE...           whether its bytes are those that were written
python -m utils.checkpoint convert FILE NEW         current format (.pth) or .safetensors
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

from configs.errors import CheckpointError
from configs.followed import CONVERT
from utils.arguments import Parser
from utils.command_line import add_overrides, run_script, show, show_error
from utils.text import printable_lines


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 where a file is damaged or of no use."""
    return run_script(lambda: _run(parse_arguments(arguments)), arguments)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="python -m utils.checkpoint", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("inspect", help="print what a file holds").add_argument("file", type=Path)
    commands.add_parser("verify", help="check CRC and digest").add_argument("files", type=Path, nargs="+")
    convert = commands.add_parser("convert", help="write the current format or safetensors")
    convert.add_argument("file", type=Path)
    convert.add_argument("new", type=Path)
    add_overrides(convert, CONVERT)
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> int:
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {printable_lines(message)}\n"
    try:
        return {"inspect": _inspect, "verify": _verify, "convert": _convert}[options.command](options)
    finally:
        warnings.formatwarning = before


def _inspect(options: argparse.Namespace) -> int:
    from utils.checkpoint.inspection import describe

    show("\n".join(describe(options.file)))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from utils.checkpoint.files import examine

    refused = 0
    for path in options.files:
        try:
            show(f"{path}: {examine(path)}")
        except CheckpointError as error:
            refused += 1
            show_error(error)
    return CheckpointError.exit_code if refused else 0


def _convert(options: argparse.Namespace) -> int:
    from data.transforms.images import Preprocess
    from models.saved_model import load_models
    from utils.checkpoint.files import save_checkpoint
    from utils.checkpoint.safetensors_files import write_safetensors

    (saved,) = load_models([options.file], options.set, CONVERT)
    model, config = saved.model, saved.config
    preprocessing: Mapping[str, object] | None = saved.preprocessing
    if preprocessing is None:
        size, channels, mode = config.image_shape(), config.MODEL.in_channels, config.DATA.resize
        mean, std = config.DATA.mean or model.backbone.mean, config.DATA.std or model.backbone.std
        preprocessing = Preprocess(size, channels, mean, std, mode).as_dict()
        show(f"the file does not say how images were prepared; written down as {preprocessing}")
    if saved.class_names is None:
        show("the file does not name its classes: give them by --set DATA.class_names=[…], in the order of training")
    description = {
        "config": config.model_dump(mode="json"),
        "class_names": list(saved.class_names) if saved.class_names else None,
        "preprocessing": preprocessing,
    }
    if options.new.suffix == ".safetensors":
        write_safetensors(options.new, model.state_dict(), description)
    else:
        save_checkpoint({**description, "model": model.state_dict()}, options.new)
    show(f"{options.new}: {saved.source}, {config.MODEL.backbone}, {config.MODEL.num_classes} classes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
