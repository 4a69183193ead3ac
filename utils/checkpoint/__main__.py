"""Look at checkpoint files, check them, convert them.

python -m utils.checkpoint inspect FILE             what a file holds; nothing in it is run
python -m utils.checkpoint verify FILE...           whether its bytes are those that were written
python -m utils.checkpoint convert FILE NEW         today's format (.pth) or .safetensors
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from configs.errors import DamagedCheckpointError, HybridMedNetError


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 where a file is damaged or of no use."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.checkpoint", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("inspect", help="print what a file holds").add_argument("file", type=Path)
    commands.add_parser("verify", help="check CRC and digest").add_argument("files", type=Path, nargs="+")
    convert = commands.add_parser("convert", help="write today's format or safetensors")
    convert.add_argument("file", type=Path)
    convert.add_argument("new", type=Path)
    convert.add_argument("--set", metavar="SECTION.key=value", nargs="+", action="extend", default=[])
    options = parser.parse_args(arguments)
    try:
        return {"inspect": _inspect, "verify": _verify, "convert": _convert}[options.command](options)
    except HybridMedNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _inspect(options: argparse.Namespace) -> int:
    from utils.checkpoint.inspection import describe

    print("\n".join(describe(options.file)))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from utils.checkpoint.files import read_file, verify

    damaged = 0
    for path in options.files:
        try:
            if path.suffix == ".safetensors":
                read_file(path)
                print(f"{path}: readable; where this program wrote it, its digest fits")
            else:
                print(f"{path}: whole ({'CRC and digest' if verify(path) else 'CRC; it has no digest'})")
        except DamagedCheckpointError as error:
            damaged += 1
            print(f"error: {error}", file=sys.stderr)
    return 2 if damaged else 0


def _convert(options: argparse.Namespace) -> int:
    from models.saved_model import convert

    for line in convert(options.file, options.new, options.set):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
