# PYTHON_ARGCOMPLETE_OK
"""Draw which places speak for a finding, and measure whether they are right.

python -m explain checkpoints/<run>                                    # Grad-CAM on the test split
python -m explain checkpoints/<run> --method grad_cam layer_cam --sanity
python -m explain model.pth --data /data/nih --boxes BBox_List_2017.csv --split all
python -m explain checkpoints/<run> --table shapley lime attention     # what columns and views of studies add

Where findings are annotated (boxes.csv or BBox_List_2017.csv beside the data, or --boxes, or --masks), the pointing
game and IoU of every map are measured, those of a network with random weights and chance beside them.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import ExplanationError
from configs.followed import EXPLAIN
from configs.study_consistency import OTHER
from explain.arguments import OVERLAYS, TABLES, check_options, chosen_classes
from explain.arguments import parse_arguments as parse
from utils.claim import claimed_alone
from utils.command_line import run_script, show
from utils.runs.folder import RunFolder, model_file

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from data.evaluation_data import WholeStudy
    from data.regions.annotations import Regions
    from data.regions.boxes import Box
    from explain.heatmaps import Shown
    from explain.network import Level
    from explain.results import About, Measured, MethodResults
    from explain.study_overlay import DrawnView
    from explain.table_explainer import NamedStudy, TableExplainer
    from explain.table_report import Called
    from models import HybridMedNet
    from utils.batch import Inputs

logger = logging.getLogger("explain")

SANITY_IMAGES = 24
BACKGROUND_SEED = 0


parse_arguments = partial(parse, __doc__)


def main(arguments: list[str] | None = None) -> int:
    """Explain; returns the exit code: 0, 2 for the user's errors, 130 after Ctrl-C."""
    return run_script(lambda: run(parse_arguments(arguments)), arguments)


def run(options: argparse.Namespace) -> None:
    """The recipe: model → data → regions → maps → figures, overlays, files; then the table's."""
    from explain.explained_study import TABLE_METHODS
    from explain.methods import METHODS

    options.method = list(METHODS) if options.method == ["all"] else options.method
    check_options(options, [*METHODS], TABLE_METHODS)
    session = Session(options)
    explainer = session.table_explainer() if options.table else None
    output = RunFolder(Path(options.output) if options.output else session.path.parent / f"explanation-{options.split}")
    output.path.mkdir(parents=True, exist_ok=True)
    taken = ExplanationError(f"another process is writing into '{output.path}': wait, or name another by --output")
    with claimed_alone(output.path, taken):
        if options.method:
            explain(options, options.method, session, output)
        if explainer is not None:
            explain_tables(options, session, explainer, output)
    logger.info("figures and tables are in %s", output.path)


def explain(options: argparse.Namespace, methods: Sequence[str], session: Session, output: RunFolder) -> None:
    """Each method in turn → its figures and overlays, then localization.json."""
    from explain.heatmaps import sanity
    from explain.methods import METHODS
    from explain.results import format_localization, format_sanity, localization, sanity_values

    results: dict[str, MethodResults] = {}
    for method in methods:
        level = options.level if METHODS[method].has_levels else "auto"
        results[method] = {"level": str(level)}
        try:
            if session.annotated:
                found = localization(list(session.measure(method, level)), session.class_names)
                results[method]["all"], results[method]["classes"] = found["all"], found["classes"]
                show(format_localization(f"\n{method}, level {level}, {options.split} split", found))
            session.draw(output.path, method, level, OVERLAYS if options.count is None else options.count)
            if options.sanity:
                images = islice(session.images_in_turn(), SANITY_IMAGES)
                check = sanity(session.model, session.random, images, method, level)
                results[method]["sanity"] = sanity_values(check)
                show(format_sanity(check))
        except ExplanationError as error:
            if len(methods) == 1:
                raise
            results[method]["error"] = str(error)
            logger.warning("%s left out: %s", method, error)
    output.write_json("localization.json", {"split": options.split, **session.about(), "methods": results})


def explain_tables(options: argparse.Namespace, session: Session, explainer: TableExplainer, output: RunFolder) -> None:
    """Studies, spread over the split, each by all methods → the table, its figures, table_explanations.json."""
    from explain.heatmaps import spread
    from explain.table_report import TableReport, format_tables
    from utils.progress import Progress

    rows = session.rows[spread(len(session.rows), options.count or TABLES)].tolist()
    studies, called, difference = [], [], None
    bar = Progress(len(rows), "studies", unit="study")
    try:
        for row in rows:
            found = session.explained(explainer, row)
            if found is not None:
                studies.append(found[0])
                called.append(found[1])
                difference = (
                    explainer.difference(session.study(row).inputs, found[0]) if difference is None else difference
                )
            bar.advance(1)
    finally:
        bar.close()
    if not studies:
        raise ExplanationError(f"{options.split} split: not one study could be read")
    names = [session.class_names[k] for k in explainer.classes]
    report = TableReport(studies, called, names, session.task.exclusive, f"{options.split} split")
    report.write(output.path)
    about: dict[str, object] = {"checkpoint": session.path.name, "split": options.split, "methods": options.table}
    about |= {"studies_of_split": len(session.rows), "largest_difference_from_network": difference}
    about["background"] = {"split": "train", "seed": BACKGROUND_SEED, "studies": session.background}
    output.write_json("table_explanations.json", {**about, **report.content()})
    drawn = f"{len(studies)} of {len(session.rows)} studies of the {options.split} split"
    background = f"background: {len(session.background)} training studies"
    show(format_tables(f"\n{', '.join(options.table)}: {drawn}, in logits; {background}", report))


class Session:
    """Model, data and annotated regions of one call."""

    def __init__(self, options: argparse.Namespace) -> None:
        from configs.run_data import with_data_of_run
        from data.builder import saved_preprocess, saved_table
        from data.evaluation_data import WholeStudies, open_evaluation_data
        from data.sources.studies import check_known_views, check_view_kinds
        from explain.table_explainer import check_model
        from models.saved_model import load_models
        from training.precision import choose_device
        from utils.process import prepare_process

        self.options, self.path = options, model_file(Path(options.checkpoint))
        (saved,) = load_models([self.path], options.set, EXPLAIN)
        self.saved, model = saved, saved.config.MODEL
        check_model(self.path, options.table, model.views.aggregator, model.table.fusion)
        self.config = with_data_of_run(saved.config, self.path.parent, options.data, options.labels, options.set)
        folder, digest = self.path.parent, saved.description.get("split_sha256")
        self.data = open_evaluation_data(self.config, saved.class_names, folder, digest, options.data is None)
        self.rows = self.data.split.rows(options.split)
        self.dataset_index, self.class_names = self.data.dataset_index, self.data.dataset_index.class_names
        check_view_kinds(saved.description.get("view_kinds"), self.dataset_index)
        check_known_views(self.dataset_index)
        self.classes = chosen_classes(options.classes, self.class_names)
        self.task = saved.task(self.class_names)
        self.device = choose_device(saved.config.TRAIN.device)
        prepare_process(self.device)
        self.model = saved.model.to(self.device)
        mean, std = self.model.backbone.mean, self.model.backbone.std
        self.preprocess = saved_preprocess(saved.preprocessing, saved.config, mean, std)
        self.encoding = saved_table(saved.description.get("table"))
        self.whole = WholeStudies(self.dataset_index, self.preprocess, self.encoding)
        self._last: tuple[int, WholeStudy] | None = None
        self.background: list[str] = []  # names of the training studies that stand in for a column that is away
        self.image_rows = self.dataset_index.image_rows(self.rows)
        self.regions = self._open_regions() if options.method else None
        found = [(row, self.regions.classes(row)) for row in self.image_rows.tolist()] if self.regions else []
        pairs = [(row, tuple(k for k in classes if k in self.classes)) for row, classes in found]
        self.annotated: list[tuple[int, tuple[int, ...]]] = [pair for pair in pairs if pair[1]][: options.limit]
        if self.regions:
            logger.info("%d of %d images have annotated regions", len(self.annotated), len(self.image_rows))

    def _open_regions(self) -> Regions | None:
        from configs.fallbacks import SAMPLE_IMAGES
        from data.regions.annotations import open_regions

        if self.config.has_volumes():
            return None
        folder = Path(self.config.DATA.data_dir or SAMPLE_IMAGES.folder)
        regions = open_regions(self.dataset_index.image_index, folder, self.options.boxes, self.options.masks)
        if regions is None:
            logger.warning("no table of boxes beside the data: maps are drawn, not measured; --boxes FILE names one")
        return regions

    def study(self, row: int) -> WholeStudy:
        """A study, or an image that stands alone, its inputs on the device; the last one is kept."""
        if self._last is None or self._last[0] != row:
            found = self.whole.read(row)
            for problem in found.problems:
                logger.warning("%s: this view counts as missing", problem)
            self._last = row, found._replace(inputs=found.inputs.to(self.device))
        return self._last[1]

    def image(self, row: int) -> Shown | None:
        """A row of the image index; None where it is a view that cannot be read."""
        from explain.heatmaps import Shown, as_it_is
        from explain.study_view import ViewOfStudy

        number, view = self.whole.place(row)
        study = self.study(number)
        if study.views[view].pixels is None:
            return None
        at = int(study.inputs.view_mask[0, :view].sum())
        of = partial(ViewOfStudy, inputs=study.inputs, view=view) if self.whole.several else as_it_is
        return Shown(study.views[view].pixels, study.inputs.image[at : at + 1], of)

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
        from explain.results import Measured

        for row, classes in self.annotated:
            if (shown := self.image(row)) is None:
                continue
            assert self.regions is not None and isinstance(shown.pixels, np.ndarray), "regions are of images"
            shape, group = shown.pixels.shape[:2], self.dataset_index.studies[self.whole.place(row)[0]].group
            both = [self.on_image(shown.maps(net, classes, method, level), shape) for net in (self.model, self.random)]
            for k, trained, random in zip(classes, *both):
                region, _ = self.regions.of(row, k, shape)
                yield Measured(self.class_names[k], group, measure(trained, region), measure(random, region))

    def draw(self, folder: Path, method: str, level: Level, count: int) -> None:
        """Overlays, the classes in turn; of images without regions those of their labels."""
        from data.transforms.volumes import VolumePreprocess
        from explain.study_overlay import save_alone, save_views

        for number, k in islice(self._in_turn(), count):
            name, of = self.class_names[k], self.dataset_index.studies[number].name
            views = self._drawn(number, k, method, level)
            if not views:
                logger.warning("study '%s' has no view that can be read: it is not drawn", of)
                continue
            p, called = self.answer(self.study(number).inputs, k)
            title = f"{of}, {method}, level {level}; called: {called or 'no finding'}"
            spacing = self.preprocess.spacing_mm if isinstance(self.preprocess, VolumePreprocess) else None
            save = save_views if self.whole.several else save_alone
            save(folder / method, of, views, class_name=name, probability=p, title=title, spacing=spacing)

    def _drawn(self, number: int, k: int, method: str, level: Level) -> list[DrawnView]:
        """The views of a study that can be read."""
        import numpy as np

        from data.readers.images import to_uint8
        from explain.study_overlay import DrawnView

        rows, views, annotated = self.whole.image_rows(number), [], dict(self.annotated)
        for row, weight in zip(rows, self._view_weights(number, len(rows))):
            if (shown := self.image(row)) is None:
                continue
            maps, view = shown.maps(self.model, [k], method, level), self.study(number).views[self.whole.place(row)[1]]
            if maps.ndim == 4:
                voxels, heatmap = shown.x[0, 0].cpu().numpy(), maps[0].cpu().numpy()
                views.append(DrawnView(view.name, view.value, voxels, heatmap, weight))
                continue
            assert isinstance(shown.pixels, np.ndarray), "maps of images"
            shape, mask = shown.pixels.shape[:2], None
            boxes: tuple[Box, ...] = ()
            if self.regions is not None and k in annotated.get(row, ()):
                mask, boxes = self.regions.of(row, k, shape)
            heatmap, mask = self.on_image(maps, shape)[0], None if len(boxes) else mask
            views.append(DrawnView(view.name, view.value, to_uint8(shown.pixels), heatmap, weight, boxes, mask))
        return views

    def _view_weights(self, number: int, views: int) -> list[float | None]:
        """How much each view of a study counts, where it has several."""
        several = views > 1 and self.config.MODEL.views.aggregator is not None
        return self.model.view_weights(self.study(number).inputs)[0].tolist() if several else [None] * views

    def _in_turn(self) -> list[tuple[int, int]]:
        """(row of the dataset index, class), the first of every class, then the second …"""
        from explain.heatmaps import in_turn

        pairs = [(self.whole.place(row)[0], k) for row, classes in self.annotated for k in classes]
        if not self.annotated:
            labels = self.dataset_index.label_matrix()
            pairs = [(row, k) for row in self.rows.tolist() for k in self.classes if labels[row, k] == 1]
        return in_turn(pairs, len(self.class_names))

    def images_in_turn(self) -> Iterator[tuple[Shown, int]]:
        """Their images, with the class."""
        for number, k in self._in_turn():
            for row in self.whole.image_rows(number):
                if (shown := self.image(row)) is not None:
                    yield shown, k

    def answer(self, inputs: Inputs, k: int) -> tuple[float, str]:
        """(probability of class k, calibrated where the checkpoint has a calibration; what predict.py would call)."""
        import torch

        from explain.table_report import called_text
        from utils.batch import Logits

        with torch.no_grad():
            logits = Logits.of(self.model(inputs)).fine.double().cpu().numpy()
        probabilities, called = self.called(logits)
        return float(probabilities[k]), called_text(called, self.class_names)

    def called(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of logits [1, K]: (probabilities, bool: whether a class is called), [K] both."""
        from evaluation.fitting import stored_point

        point = stored_point(self.saved.description.get("operating_point"), logits.shape[1])
        probabilities = point.probabilities(logits, self.task.exclusive)
        return probabilities[0], point.decision(self.task).calls(probabilities)[0]

    def table_explainer(self) -> TableExplainer:
        """Of a model with views or a table. Raises DataError where a table's training studies are not to be had."""
        import numpy as np

        from data.evaluation_data import training_table
        from data.table_encoding import Categorical
        from explain.background import Background
        from explain.table_explainer import Column, TableExplainer

        model, methods = self.config.MODEL, self.options.table
        kinds = [kind for kind in model.view_kinds or () if kind != OTHER]
        of_table = () if self.encoding is None else self.encoding.columns
        words = {column.name for column in of_table if isinstance(column, Categorical)}
        if self.encoding is None:
            background = Background(np.zeros((1, 0)), np.zeros((1, 0), bool))
        elif {*methods} == {"attention"}:  # nothing stands in for a column: it is never away
            background = Background.of_training(self.whole.table.values[self.rows], self.whole.table.known[self.rows])
        else:
            table = training_table(self.data, self.encoding, self.path.parent, self.options.data is None)
            background = Background.of_training(*table[1:], seed=BACKGROUND_SEED)
            self.background = [table[0][row] for row in background.numbers]
        return TableExplainer(
            self.model,
            [Column(name, name in words) for name in (self.encoding.names if self.encoding else ())],
            kinds if model.views.aggregator else [],
            model.views.aggregator,
            model.table.fusion,
            background,
            methods,
            self.classes,
        )

    def explained(self, explainer: TableExplainer, row: int) -> tuple[NamedStudy, Called] | None:
        """None where nothing of a study can be read, and its table says nothing."""
        from explain.table_explainer import View
        from explain.table_report import Called

        study, name = self.study(row), self.dataset_index.studies[row].name
        if not (study.inputs.view_mask.any() or study.inputs.table_mask.any()):
            logger.warning("study '%s' has no view that can be read and no value: it is left out", name)
            return None
        views = [View(view.name, view.value if view.pixels is not None else "") for view in study.views]
        found = explainer.explain(name, study.inputs, self.whole.cells(row), views)
        probabilities, called = self.called(found.logits[None])
        every = self.options.classes is not None
        return found, Called.of(probabilities, called, self.class_names, self.classes, every)

    def about(self) -> About:
        """What the figures are of."""
        about: About = {
            "checkpoint": self.path.name,
            "images": len(self.image_rows),
            "annotated_images": len(self.annotated),
            "regions": self.regions.kind if self.regions else None,
        }
        return {**about, "studies": len(self.rows)} if self.whole.several else about


if __name__ == "__main__":
    sys.exit(main())
