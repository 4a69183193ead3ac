"""Draw which places speak for a finding, and measure whether they are right.

python -m explain checkpoints/<run>                                    # Grad-CAM on the test split
python -m explain checkpoints/<run> --method grad_cam layer_cam --sanity
python -m explain model.pth --data /data/nih --boxes BBox_List_2017.csv --split all

Where findings are annotated (boxes.csv or BBox_List_2017.csv beside the data, or --boxes, or --masks), the pointing
game and IoU of every map are measured, those of a network with random weights and chance beside them.
"""

from __future__ import annotations

import argparse
import logging
import sys
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Required, TypedDict

from configs.errors import ExplanationError
from configs.followed import EXPLAIN
from utils.command_line import add_overrides, run_script, show
from utils.runs.folder import RunFolder, model_file

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from data.regions.annotations import Regions
    from data.regions.boxes import Box
    from data.study import Pixels
    from explain.network import Level
    from explain.results import Measured, SanityRecord, TrainedAndRandom
    from explain.sanity import Check
    from models import HybridMedNet

logger = logging.getLogger("explain")

SANITY_IMAGES = 24


class MethodResults(TypedDict, total=False):
    """What localization.json says of a method: figures where regions are annotated, or why there are none."""

    level: Required[str]
    all: TrainedAndRandom
    classes: dict[str, TrainedAndRandom]
    sanity: SanityRecord
    error: str


class About(TypedDict):
    """What the figures are of. regions: 'boxes' or 'masks'; None where nothing is annotated."""

    checkpoint: str
    images: int
    annotated_images: int
    regions: str | None


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; torch is not imported for it."""
    parser = argparse.ArgumentParser(
        prog="python -m explain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="The methods, and how far to believe them: docs/explanation.md.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a run's folder, a .pth or .safetensors file")
    add("--data", metavar="PATH", help="folder or .npz; without it where the config.yaml beside the checkpoint says")
    add("--labels", metavar="FILE", help="labels table; without it labels.csv in the data's folder")
    add("--split", choices=("test", "val", "train", "all"), default="test", help="which images (test)")
    add_overrides(parser, EXPLAIN)
    add("--method", metavar="NAME", nargs="+", default=["grad_cam"], help="one or more, or all (grad_cam)")
    add("--level", type=parse_level, default="auto", help="0 (finest) to -1 (coarsest), fused or auto (auto)")
    add("--boxes", metavar="FILE", help="table of boxes: image, finding, x, y, w, h; or NIH's BBox_List_2017.csv")
    add("--masks", metavar="DIR", help="the sample data's masks, instead of boxes")
    add("--limit", metavar="N", type=int, help="measure on the first N annotated images only")
    add("--count", metavar="N", type=int, default=8, help="overlays to draw, the classes in turn (8)")
    add("--sanity", action="store_true", help="randomise the network from the head on: the maps must change")
    add("--output", metavar="DIR", help="where to write; without it explanation-<split> beside the checkpoint")
    return parser.parse_args(arguments)


def parse_level(text: str) -> int | str:
    """A number, or a word that `resolve_level` judges."""
    return int(text) if text.lstrip("-").isdigit() else text


def main(arguments: list[str] | None = None) -> int:
    """Explain; returns the exit code: 0, 2 for the user's errors, 130 after Ctrl-C."""
    options = parse_arguments(arguments)
    return run_script(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """The recipe: model → data → regions → maps → figures, overlays, files."""
    from explain.methods import METHODS
    from explain.results import format_localization, format_sanity, localization, sanity_values

    methods = list(METHODS) if options.method == ["all"] else options.method
    for method in methods:
        if method not in METHODS:
            raise ExplanationError(f"unknown method {method!r}: one of {', '.join(METHODS)}, or all")
    session = Session(options)
    output = RunFolder(Path(options.output) if options.output else session.path.parent / f"explanation-{options.split}")
    output.path.mkdir(parents=True, exist_ok=True)
    results: dict[str, MethodResults] = {}
    for method in methods:
        level = options.level if METHODS[method].has_levels else "auto"
        results[method] = {"level": str(level)}
        try:
            if session.annotated:
                found = localization(list(session.measure(method, level)), session.class_names)
                results[method]["all"], results[method]["classes"] = found["all"], found["classes"]
                show(format_localization(f"\n{method}, level {level}, {options.split} split", found))
            session.draw(output.path, method, level, options.count)
            if options.sanity:
                check = session.sanity(method, level)
                results[method]["sanity"] = sanity_values(check)
                show(format_sanity(check))
        except ExplanationError as error:
            if len(methods) == 1:
                raise
            results[method]["error"] = str(error)
            logger.warning("%s left out: %s", method, error)
    output.write_json("localization.json", {"split": options.split, **session.about(), "methods": results})
    logger.info("figures and overlays are in %s", output.path)


class Session:
    """Model, data and annotated regions of one call."""

    def __init__(self, options: argparse.Namespace) -> None:
        from configs.run_data import with_data_of_run
        from data.builder import saved_preprocess
        from data.evaluation_data import open_evaluation_data
        from models.saved_model import load_models
        from training.precision import choose_device
        from utils.process import prepare_process

        self.options, self.path = options, model_file(Path(options.checkpoint))
        (saved,) = load_models([self.path], options.set, EXPLAIN)
        self.saved = saved
        self.config = with_data_of_run(saved.config, self.path.parent, options.data, options.labels, options.set)
        folder, digest = self.path.parent, saved.description.get("split_sha256")
        self.data = open_evaluation_data(self.config, saved.class_names, folder, digest, options.data is None)
        self.rows = self.data.split.rows(options.split)
        self.dataset_index, self.class_names = self.data.dataset_index, self.data.dataset_index.class_names
        self.task = saved.task(self.class_names)
        self.device = choose_device(saved.config.TRAIN.device)
        prepare_process(self.device)
        self.model = saved.model.to(self.device)
        backbone = self.model.backbone
        self.preprocess = saved_preprocess(saved.preprocessing, saved.config, backbone.mean, backbone.std)
        self.regions = self._open_regions()
        pairs = [(row, self.regions.classes(row)) for row in self.rows.tolist()] if self.regions else []
        self.annotated: list[tuple[int, tuple[int, ...]]] = [pair for pair in pairs if pair[1]][: options.limit]
        logger.info("%d of %d images have annotated regions", len(self.annotated), len(self.rows))

    def _open_regions(self) -> Regions | None:
        from configs.fallbacks import SAMPLE_IMAGES
        from data.regions.annotations import open_regions

        if self.config.has_volumes():
            return None
        folder = Path(self.config.DATA.data_dir or SAMPLE_IMAGES.folder)
        regions = open_regions(self.dataset_index, folder, self.options.boxes, self.options.masks)
        if regions is None:
            logger.warning("no table of boxes beside the data: maps are drawn, not measured; --boxes FILE names one")
        return regions

    def image(self, row: int) -> tuple[Pixels, Tensor]:
        """(what the dataset index reads, the network's input [1, C, *spatial])."""
        image = self.dataset_index.read(row)
        return image, self.preprocess.apply(self.dataset_index, row, full=image).image[None].to(self.device)

    def on_image(self, maps: Tensor, shape: Sequence[int]) -> np.ndarray:
        """Maps [K, h, w] of the input as float32 [K, H, W] of the original."""
        import numpy as np

        from data.transforms.images import Preprocess
        from explain.geometry import onto_image

        assert isinstance(self.preprocess, Preprocess), "maps of images"
        return np.stack([onto_image(one, shape, self.preprocess.resize_mode) for one in maps.cpu().numpy()])

    @cached_property
    def random(self) -> HybridMedNet:
        """The same architecture as it is before training."""
        from models import HybridMedNet
        from models.channel_pruning import remove_channels
        from utils.seed import seeded

        with seeded(0):
            network = HybridMedNet(self.saved.config.without_pretrained()).eval()
        remove_channels(network, self.model.removed_channels)
        return network.to(self.device)

    def measure(self, method: str, level: Level) -> Iterator[Measured]:
        """A `Measured` for each annotated finding."""
        import numpy as np

        from explain.localization import measure
        from explain.methods import explain
        from explain.results import Measured

        for row, classes in self.annotated:
            image, x = self.image(row)
            assert self.regions is not None and isinstance(image, np.ndarray), "regions are of images"
            shape = image.shape[:2]
            both = [
                self.on_image(explain(net, x, classes, method, level)[0], shape) for net in (self.model, self.random)
            ]
            for k, trained, random in zip(classes, *both):
                region, _ = self.regions.of(row, k, shape)
                group = self.dataset_index.studies[row].group
                yield Measured(self.class_names[k], group, measure(trained, region), measure(random, region))

    def draw(self, folder: Path, method: str, level: int | str, count: int) -> None:
        """Overlays, the classes in turn; of images without regions those of their labels."""
        import numpy as np

        from data.readers.images import to_uint8
        from data.transforms.volumes import VolumePreprocess
        from explain.methods import explain
        from explain.overlay import save_overlay, save_volume_overlay

        for row, k in islice(self._in_turn(), count):
            image, x = self.image(row)
            maps, name = explain(self.model, x, [k], method, level)[0], self.class_names[k]
            file = self.dataset_index.studies[row].name
            path = folder / method / f"{name.replace('/', '_')}_{Path(file).stem}_{zlib.crc32(file.encode()):08x}.png"
            p, called = self.answer(x, k)
            title = f"{file}, {method}, level {level}; called: {called or 'no finding'}"
            if maps.ndim == 4:
                assert isinstance(self.preprocess, VolumePreprocess), "maps of volumes"
                spacing = self.preprocess.spacing_mm or (1.0, 1.0, 1.0)
                voxels, heatmap = x[0, 0].cpu().numpy(), maps[0].cpu().numpy()
                save_volume_overlay(path, voxels, heatmap, class_name=name, probability=p, spacing=spacing, title=title)
                continue
            assert isinstance(image, np.ndarray), "maps of images"
            boxes: Sequence[Box] = ()
            mask = None
            if self.regions is not None and self.annotated:
                mask, boxes = self.regions.of(row, k, image.shape[:2])
            heatmap = self.on_image(maps, image.shape[:2])[0]
            mask = None if len(boxes) else mask
            save_overlay(
                path, to_uint8(image), heatmap, class_name=name, probability=p, boxes=boxes, mask=mask, title=title
            )

    def _in_turn(self) -> list[tuple[int, int]]:
        """(row, class), the first image of every class, then the second …"""
        pairs = [(row, k) for row, classes in self.annotated for k in classes]
        if not self.annotated:
            labels = self.dataset_index.label_matrix()
            pairs = [(row, int(k)) for row in self.rows.tolist() for k in (labels[row] == 1).nonzero()[0]]
        by_class = [[pair for pair in pairs if pair[1] == k] for k in range(len(self.class_names))]
        return [pair for turn in zip_longest(*by_class) for pair in turn if pair is not None]

    def answer(self, x: Tensor, k: int) -> tuple[float, str]:
        """(probability of class k, calibrated where the checkpoint has a calibration; what predict.py would call)."""
        import torch

        from evaluation.fitting import stored_point
        from explain.network import class_logits

        with torch.no_grad():
            logits = class_logits(self.model, x).double().cpu().numpy()
        point, task = stored_point(self.saved.description.get("operating_point"), logits.shape[1]), self.task
        probabilities = point.probabilities(logits, task.exclusive)
        return float(probabilities[0, k]), point.decision(task).texts(probabilities)[0]

    def sanity(self, method: str, level: Level) -> Check:
        """The cascade over the first images, each with its first class."""
        import torch

        from explain.methods import explain
        from explain.sanity import check

        inputs = [(self.image(row)[1], k) for row, k in islice(self._in_turn(), SANITY_IMAGES)]
        if not inputs:
            raise ExplanationError("--sanity needs images with a finding: there is none in this split")
        return check(
            self.model, self.random, lambda net: torch.cat([explain(net, x, [k], method, level) for x, k in inputs])
        )

    def about(self) -> About:
        """What the figures are of."""
        return {
            "checkpoint": self.path.name,
            "images": len(self.rows),
            "annotated_images": len(self.annotated),
            "regions": self.regions.kind if self.regions else None,
        }


if __name__ == "__main__":
    sys.exit(main())
