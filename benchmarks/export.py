"""Exported files of every family of backbones: size, time, and how far they are from the network.

python -m benchmarks.export                                            # what docs/benchmarks/export.json lacks
python -m benchmarks.export --formats onnx --backbones swin_tiny --again

Random weights, 14 classes, cross-scale attention; images of 64 px, volumes of 32³. Each result is written down at
once, so that a stopped run can be continued. Seconds are the process's CPU time: other programs do not count.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from configs.default_config import Config
from configs.errors import ExportError
from deployment.exported_network import ExportedNetwork
from deployment.formats import FORMATS, Request, export_file
from deployment.verification import BOUNDS, random_images
from models import HybridMedNet, backbone_dims, list_backbones
from models.backbones.families import smallest_of_each_family
from utils.atomic_file import write_atomically
from utils.environment import describe_environment

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "export.md"
MEASURED = ("onnx", "torch_export", "torchscript", "openvino")
IMAGE, VOLUME = (64, 64), (32, 32, 32)
IMAGES = 4


def build(backbone: str) -> ExportedNetwork:
    """A network with random weights; branches that begin at zero get small ones, so that they count."""
    config = Config()
    config.MODEL["backbone"], config.MODEL["pretrained"], config.MODEL["attention"] = backbone, False, "cross_scale"
    config.DATA["image_size"] = IMAGE if backbone_dims(backbone) == 2 else VOLUME
    torch.manual_seed(0)
    model = HybridMedNet(config)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return ExportedNetwork(model)


def measure(backbone: str, kind: str) -> dict:
    """Size in bytes, CPU seconds, largest |Δ| of probabilities; or the reason why there is no such file."""
    network = build(backbone)
    image_shape = (3, *(IMAGE if backbone_dims(backbone) == 2 else VOLUME))
    begin = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        try:
            path, images = Path(folder) / "model", random_images(image_shape, IMAGES)
            path = path.with_suffix({"openvino": ".xml", "torch_export": ".pt2"}.get(kind, f".{kind}"))
            difference = export_file(network, kind, path, Request(image_shape), images)
        except ExportError as error:
            return {"backbone": backbone, "format": kind, "reason": str(error)}
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
    seconds = time.process_time() - begin
    return {"backbone": backbone, "format": kind, "bytes": size, "seconds": seconds, "difference": difference}


def table(rows: list[dict]) -> str:
    """A row a backbone, three columns a format."""
    kinds = [kind for kind in MEASURED if any(row["format"] == kind for row in rows)]
    cells = {(row["backbone"], row["format"]): row for row in rows}
    lines = ["| backbone | " + " | ".join(f"{kind}: MB | s | largest \\|Δ\\|" for kind in kinds) + " |"]
    lines.append("| --- |" + " ---: | ---: | ---: |" * len(kinds))
    for backbone in sorted({row["backbone"] for row in rows}):
        found = " | ".join(_cell(cells.get((backbone, kind))) for kind in kinds)
        lines.append(f"| {backbone} | {found} |")
    return "\n".join(lines)


def _cell(row: dict | None) -> str:
    if row is None:
        return "not measured | |"
    if "reason" in row:
        return "refused | | "
    return f"{row['bytes'] / 1e6:.1f} | {row['seconds']:.0f} | {row['difference']:.1e}"


def page(figures: dict) -> str:
    """The Markdown page; every number in it is of docs/benchmarks/export.json."""
    rows, machine = figures["rows"], figures["environment"]
    worst = max((row["difference"] for row in rows if "difference" in row), default=float("nan"))
    refused = [f"- `{row['backbone']}`, {row['format']}: {row['reason']}" for row in rows if "reason" in row]
    return f"""# Exported files, measured

Written by `python -m benchmarks.export` on {machine["time"][:10]}: {machine["processor"]}, 1 thread, Python
{machine["python"]}, torch {machine["packages"]["torch"]}.

The smallest member of each family, random weights, 14 classes, cross-scale attention, float32; images of 64 px and
volumes of 32³. *s* are CPU seconds of tracing, writing, running and comparing, on a machine that others used too.
*Largest |Δ|* is of probabilities, over {IMAGES} random images, 1 and 3 at a time; {BOUNDS["fp32"]:g} or more would
have been an error. The largest of all is {worst:.1e}.

{table(rows)}
{chr(10) + "Refused, each with its reason:" + chr(10) * 2 + chr(10).join(refused) + chr(10) if refused else ""}
int8, and what it does to time, size and AUROC: [quantization.md](quantization.md). How to: [export](../export.md).
"""


def _written() -> list[dict]:
    """The rows on disk; read anew each time, as two processes may measure different formats."""
    data = PAGE.with_suffix(".json")
    return json.loads(data.read_text(encoding="utf-8"))["rows"] if data.is_file() else []


def _of(rows: list[dict], backbone: str, kind: str) -> list[dict]:
    return [row for row in rows if (row["backbone"], row["format"]) == (backbone, kind)]


def _write(row: dict) -> None:
    """Put a row in the place of the one that it repeats, and make the page anew."""
    print(row, flush=True)
    rows = _written()
    rows = [other for other in rows if other not in _of(rows, row["backbone"], row["format"])] + [row]
    figures = {"environment": describe_environment("cpu", "fp32"), "rows": rows}
    write_atomically(PAGE.with_suffix(".json"), (json.dumps(figures, indent=1) + "\n").encode())
    write_atomically(PAGE, page(figures).encode())


def main(arguments: list[str] | None = None) -> int:
    """Measure what is not written down yet; each row is written as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=MEASURED)
    parser.add_argument("--backbones", nargs="+", default=smallest_of_each_family(list_backbones()))
    parser.add_argument("--again", action="store_true", help="measure what is written down already, too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for kind in options.formats:
        for backbone in options.backbones:
            if options.again or not _of(_written(), backbone, kind):
                _write(measure(backbone, kind))
    return 0


if __name__ == "__main__":
    sys.exit(main())
