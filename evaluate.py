#!/usr/bin/env python3
# PYTHON_ARGCOMPLETE_OK
"""Measure a trained model on its test split: figures with intervals, images, a report.

python evaluate.py checkpoints/<run> --calibrate platt --threshold sensitivity=0.9 --subgroups sex age
python evaluate.py model.pth --data /data/other_hospital --split all --compare checkpoints/<other run>
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from configs.errors import EvaluationError
from configs.followed import EVALUATE
from utils.arguments import Parser, Values, split_known
from utils.command_line import add_overrides, run_script, show
from utils.runs.cross_validation import is_cross_validation, model_files
from utils.runs.folder import model_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    from configs.default_config import Config
    from data.evaluation_data import EvaluationData
    from data.withheld import StudyInputNames, Withheld
    from evaluation.fitting import FitOptions
    from evaluation.operating_points import OperatingPoint
    from evaluation.records import AttentionResults, Comparison, WithheldResults
    from evaluation.scored_split import BootstrapSettings, ScoredSplit
    from models.saved_model import SavedModel

    Score = Callable[[str], tuple[np.ndarray, np.ndarray]]

logger = logging.getLogger("evaluate")


class Evaluated(NamedTuple):
    """The model that is evaluated; what it is given of studies, None of single images; what is to be withheld."""

    saved: SavedModel
    names: StudyInputNames | None
    withheld: list[Withheld]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; torch is not imported for it."""
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="What every figure is, and the traps: docs/evaluation.md.",
    )
    add = parser.add_argument
    add(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a run's or a cross-validation's folder, a .pth or .safetensors file, the previous release's too",
    )
    add("--data", metavar="PATH", help="folder or .npz; without it where the config.yaml beside the checkpoint says")
    add("--labels", metavar="FILE", help="labels table; without it labels.csv in the data's folder")
    add("--split", choices=("test", "val", "train", "all"), default="test", help="what to evaluate (test)")
    add_overrides(parser, EVALUATE)
    add("--threshold", metavar="RULE", help="youden, f1, sensitivity=0.9 or specificity=0.95, chosen on val")
    add("--calibrate", metavar="METHOD", help="temperature, platt or none, fitted on val")
    add("--subgroups", metavar="COLUMN", action=Values, default=[], help="columns of the labels table")
    add("--compare", metavar="CHECKPOINT", help="another model, on the same images")
    without = (
        "of a model of studies: table, images, a kind of view or a column; what it brings is measured by taking it away"
    )
    add("--without", metavar="INPUT", action=Values, default=[], help=without)
    add("--vector", choices=("svg", "pdf"), help="write every figure as such a file too, for a paper")
    add("--figure-style", choices=("screen", "paper"), default="screen", help="paper: also one ROC, a column wide")
    add("--no-save", dest="save", action="store_false", help="leave the checkpoint as it is, whatever is fitted")
    add("--draws", metavar="N", type=int, default=2000, help="bootstrap draws for the intervals (2000)")
    add("--output", metavar="DIR", help="where to write; without it evaluation-<split> beside the checkpoint")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Evaluate; returns the exit code: 0, 2 for the user's errors, 130 after Ctrl-C."""
    return run_script(lambda: evaluate(parse_arguments(arguments)), arguments)


def evaluate(options: argparse.Namespace) -> None:
    """The recipe: model → data → scores → operating point → figures → files."""
    from configs.run_data import with_data_of_run
    from data.evaluation_data import open_evaluation_data
    from data.withheld import study_inputs
    from evaluation.evaluation_folder import make_folder
    from evaluation.fitting import FitOptions, bootstrap_settings
    from models.saved_model import load_models
    from utils.claim import claimed, claimed_alone

    fit_options, settings = FitOptions.parse(options.threshold, options.calibrate), bootstrap_settings(options.draws)
    if is_cross_validation(Path(options.checkpoint)):
        return evaluate_together(options, Path(options.checkpoint), settings)
    path = model_file(Path(options.checkpoint))
    others = [model_file(Path(options.compare))] if options.compare else []
    with claimed(path) as alone:
        saved, *compared = load_models([path, *others], options.set, EVALUATE)
        config = with_data_of_run(saved.config, path.parent, options.data, options.labels, options.set)
        digest = saved.description.get("split_sha256")
        names, withheld = study_inputs(saved.description, options.without, path)
        may_lack = {column for one in withheld for column in one.columns}
        data = open_evaluation_data(config, saved.class_names, path.parent, digest, options.data is None, may_lack)
        grouping(options, data, names, data.split.rows(options.split))  # before the work, not after it
        output = make_folder(options.output, path.parent, options.split, None if data.split.own else data.location)
        taken = EvaluationError(f"another evaluation is writing into '{output}': wait, or name another by --output")
        with claimed_alone(output, taken):
            measure(
                options,
                path,
                Evaluated(saved, names, withheld),
                compared,
                config,
                data,
                output,
                fit_options,
                settings,
                alone,
            )
    logger.info("report, figures and predictions are in %s", output)


def measure(
    options: argparse.Namespace,
    path: Path,
    evaluated: Evaluated,
    compared: Sequence[SavedModel],
    config: Config,
    data: EvaluationData,
    output: Path,
    fit_options: FitOptions,
    settings: BootstrapSettings,
    alone: bool,
) -> None:
    """The second half of the recipe: scores → operating point → figures → files.

    alone: no other process is evaluating the checkpoint, into which what is fitted may go.
    """
    from data.withheld import study_notes
    from evaluation.about import about_evaluation
    from evaluation.attention import attention_sentence
    from evaluation.calibration import uncalibrated
    from evaluation.evaluation_folder import write_evaluation
    from evaluation.fitting import operating_point
    from evaluation.results import evaluate_scores
    from evaluation.results_table import format_comparison, format_results_table, format_withheld
    from evaluation.scored_split import scored_by_task
    from evaluation.withheld import withheld_notes
    from utils.checkpoint import keep_operating_point

    saved = evaluated.saved
    score, execution = scorer(saved, config, data)
    task = saved.task(data.dataset_index.class_names)
    can_fit = data.split.has("val") and options.split != "all"
    validation = (lambda: data.labelled(*score("val"))) if can_fit else None
    point, fitted = operating_point(fit_options, saved.description.get("operating_point"), validation, task)
    (logits,), index = score(options.split)
    probabilities = point.probabilities(logits, task.exclusive)
    known, groups = data.known(index), data.groups(index)
    not_learnt = saved.not_learnt() if "training_positives" in saved.description else data.not_learnt()
    scored = scored_by_task(task, probabilities, *known, groups, options.split, not_learnt)
    columns = grouping(options, data, evaluated.names, index)
    results = evaluate_scores(scored, point, columns, settings, task)
    results["comparison"], notes = compare(options, compared, config, data, index, scored, settings)
    results["without"] = withhold(evaluated, options.split, config, data, index, scored, point, settings)
    notes += withheld_notes(results["without"]) + study_notes(
        saved.description, saved.config, data.dataset_index, index
    )
    attention = measured_attention(options, saved, config, data, settings)
    if attention is not None:
        results["attention"] = attention
        notes = [*notes, attention_sentence(attention)]
    if fitted and options.save:
        keep_operating_point(path, point.as_dict(), data.split.own, saved.model.state_dict(), alone)
    about = about_evaluation(path, saved, data, options.split, index, execution, notes)
    before = uncalibrated(logits, task.exclusive)[:, list(task.measured)] if point.calibration else None
    findings, style = point.decision(task).texts(probabilities), (options.vector, options.figure_style)
    write_evaluation(output, scored, before, results, about, data.names(index), findings, *style)
    show(format_results_table(results))
    if attention is not None:
        show(attention_sentence(attention))
    if results["comparison"] is not None:
        show(format_comparison(results["comparison"]))
    if results["without"]:
        show(format_withheld(results["without"]))


def evaluate_together(options: argparse.Namespace, folder: Path, settings: BootstrapSettings) -> None:
    """The runs of a cross-validation as one model: the means of their probabilities and of their thresholds."""
    from configs.run_data import with_data_of_run
    from data.evaluation_data import open_evaluation_data
    from data.splits.saved_split import check_unseen, members_digest
    from evaluation.about import about_models, model_facts, unread_warnings
    from evaluation.evaluation_folder import make_folder, write_evaluation
    from evaluation.fitting import stored_point
    from evaluation.pooling import MemberScores, evaluate_pool, refuse_for_several
    from evaluation.results_table import format_comparison, format_results_table
    from models.saved_model import load_models
    from utils.claim import claimed_alone

    refuse_for_several({name: getattr(options, name) for name in ("without", "threshold", "calibrate")}, folder)
    files, others = model_files(folder), [model_file(Path(options.compare))] if options.compare else []
    loaded, own_data = load_models([*files, *others], options.set, EVALUATE), options.data is None
    saved, compared = loaded[: len(files)], loaded[len(files) :]
    config = with_data_of_run(saved[0].config, files[0].parent, options.data, options.labels, options.set)
    says = {file.parent: one.description.get("split_sha256") for file, one in zip(files, saved)}
    data = open_evaluation_data(config, saved[0].class_names, folder, members_digest(folder, says), own_data)
    check_unseen(data.split, options.split, folder)
    columns = split_known(options.subgroups, data.column_names())
    data.columns(columns, data.split.rows(options.split))  # before the work
    output = make_folder(options.output, folder, options.split, None if own_data else data.location)
    with claimed_alone(output, EvaluationError(f"another evaluation is writing into '{output}': wait, or --output")):
        task = saved[0].task(data.dataset_index.class_names)
        members = []
        for number, (file, one) in enumerate(zip(files, saved)):
            score, execution = scorer(one, config, data)
            (logits,), rows = score(options.split)
            one.model.cpu()  # one at a time on the device
            point = stored_point(one.description.get("operating_point"), logits.shape[1])
            members.append(MemberScores.of((file.parent.name, 0, number), rows, logits, point, task, one.not_learnt()))
        found = evaluate_pool(members, task, data, options.split, settings, columns, together=True)
        index, results = found.pool.rows, found.results
        results["comparison"], notes = compare(options, compared, config, data, index, found.scored, settings)
        facts, words = (
            [model_facts(*pair) for pair in zip(files, saved)],
            f"{options.split}, as {data.split.source} says",
        )
        unread = unread_warnings(len(data.split.rows(options.split)) - len(index))
        about = replace(
            about_models(folder, facts, data, words, index, execution),
            title=f"{folder.name} on {options.split}",
            warnings=[*data.split.warnings, *data.split.concerns(options.split), *unread],
            notes=notes,
            titles=config.DATA.class_titles or {},
        )
        before = found.pool.uncalibrated[:, list(task.measured)] if results["calibration"] else None
        write_evaluation(
            output, found.scored, before, results, about, data.names(index), found.findings, options.vector
        )
    show(format_results_table(results))
    if results["comparison"] is not None:
        show(format_comparison(results["comparison"]))
    logger.info("report, figures and predictions are in %s", output)


def grouping(
    options: argparse.Namespace, data: EvaluationData, names: StudyInputNames | None, index: np.ndarray
) -> Mapping[str, Sequence[str]]:
    """What subgroups are made of: the columns asked for; of studies also which views and how much of the table."""
    from data.withheld import study_groups

    found = study_groups(data.dataset_index, names.columns) if names and data.dataset_index.images else {}
    named = split_known(options.subgroups, [*found, *data.column_names()])
    asked = [name for name in named if name not in found or name in data.column_names()]
    own = {name: [groups[row] for row in index] for name, groups in found.items() if name not in asked}
    several = {name: groups for name, groups in own.items() if len({*groups}) > 1 or name in named}
    return {**data.columns(asked, index), **several}


def withhold(
    evaluated: Evaluated,
    split: str,
    config: Config,
    data: EvaluationData,
    index: np.ndarray,
    scored: ScoredSplit,
    point: OperatingPoint,
    settings: BootstrapSettings,
) -> list[WithheldResults]:
    """The same weights without each of the inputs, on the same studies and at the same calibration."""
    import numpy as np

    from data.withheld import anything_left, having, without
    from evaluation.withheld import compare_withheld

    task, results = evaluated.saved.task(data.dataset_index.class_names), []
    for one in evaluated.withheld:
        rest = without(data.dataset_index, one)
        if not anything_left(rest)[index].any():
            raise EvaluationError(f"--without {one.name}: none of {len(index)} studies has anything else")
        score, _ = scorer(evaluated.saved, config, replace(data, dataset_index=rest), tell=False)
        (logits,), rows = score(split)
        left = np.isin(index, rows)
        assert np.array_equal(index[left], rows), "in one order"
        other = np.full_like(scored.probabilities, np.nan)
        other[left] = point.probabilities(logits, task.exclusive)[:, list(task.measured)]
        has = having(data.dataset_index, one)[index]
        results.append(compare_withheld(scored, other, left, one.name, has, settings))
    return results


def scorer(saved: SavedModel, config: Config, data: EvaluationData, tell: bool = True) -> tuple[Score, tuple[str, str]]:
    """(split's name → (logits float64 [n, K], rows of the dataset index [n]), each once; names of device and
    precision). tell: what is unlike training in the studies is logged.
    """
    from data.builder import build_evaluation_loader, saved_preprocess, saved_table
    from data.sources.studies import check_known_views, check_view_kinds
    from inference.predictor import Predictor
    from training.precision import choose_available_precision, choose_device, choose_memory_format
    from utils.process import prepare_process

    settings, backbone = saved.config.TRAIN, saved.model.backbone
    device = choose_device(settings.device)
    prepare_process(device)
    layout = choose_memory_format(settings.channels_last, backbone.prefers_channels_last)
    precision = choose_available_precision(settings.mixed_precision, device)
    predictor = Predictor([saved.model.to(device).to(memory_format=layout)], precision, layout)
    preprocess = saved_preprocess(saved.preprocessing, saved.config, backbone.mean, backbone.std)
    encoding, pinned = saved_table(saved.description.get("table")), device.type == "cuda"
    if tell:
        check_view_kinds(saved.description.get("view_kinds"), data.dataset_index)
        check_known_views(data.dataset_index)

    @cache
    def score(split: str) -> tuple[np.ndarray, np.ndarray]:
        rows = data.split.rows(split)
        loader = build_evaluation_loader(config, data.dataset_index, rows, preprocess, pinned, encoding, tell)
        return predictor.over(loader, split, config.LOGGING.progress)

    return score, (str(device), precision.name)


def measured_attention(
    options: argparse.Namespace,
    saved: SavedModel,
    config: Config,
    data: EvaluationData,
    settings: BootstrapSettings,
) -> AttentionResults | None:
    """Maps against the regions that LOSS.attention names; None, and a log line says why, where these data have none."""
    from configs.default_config import Config
    from configs.errors import DataError
    from data.builder import build_evaluation_loader, saved_preprocess, saved_table, taught_regions
    from evaluation.attention import attention_results
    from training.precision import choose_available_precision, choose_memory_format
    from training.region_figures import score_regions

    asked = any(key.startswith("LOSS.attention") for keys in Config.override_keys(options.set).values() for key in keys)
    named = config.LOSS.attention
    if (named.boxes is None and named.masks is None) or config.has_volumes():
        return None
    try:
        regions = taught_regions(config, data.dataset_index)
    except DataError as error:
        if asked or options.data is None:
            raise
        logger.warning("maps are not measured: %s", error)  # other data than those that the model was trained with
        return None
    backbone, model = saved.model.backbone, saved.model
    device = next(model.parameters()).device
    precision = choose_available_precision(saved.config.TRAIN.mixed_precision, device)
    layout = choose_memory_format(saved.config.TRAIN.channels_last, backbone.prefers_channels_last)
    preprocess = saved_preprocess(saved.preprocessing, saved.config, backbone.mean, backbone.std)
    encoding, rows = saved_table(saved.description.get("table")), data.split.rows(options.split)
    loader = build_evaluation_loader(config, data.dataset_index, rows, preprocess, encoding=encoding, regions=regions)
    found = score_regions(model, loader, precision, layout)
    if found is None or not len(found.index):
        logger.warning("no image of the %s split has a region of something that it has for certain", options.split)
        return None
    return attention_results(found.energy, found.hit, found.area, data.groups(found.index), settings.level)


def compare(
    options: argparse.Namespace,
    compared: Sequence[SavedModel],
    config: Config,
    data: EvaluationData,
    index: np.ndarray,
    scored: ScoredSplit,
    settings: BootstrapSettings,
) -> tuple[Comparison | None, list[str]]:
    """(--compare's model beside this one, notes); it has its own preprocessing and calibration."""
    if not compared:
        return None, []
    from evaluation.comparison import compare_by_name
    from evaluation.fitting import stored_point

    path, (other,) = model_file(Path(options.compare)), compared
    if other.config.has_volumes() != config.has_volumes():
        raise EvaluationError(f"--compare: of the two models one is for volumes, the other for images ('{path}')")
    task = other.task(data.dataset_index.class_names)
    (logits,), other_index = scorer(other, config, data)[0](options.split)
    if list(other_index) != list(index):
        raise EvaluationError("--compare: the two models could not read the same images")
    point = stored_point(other.description.get("operating_point"), logits.shape[1])
    probabilities = point.probabilities(logits, task.exclusive)
    return compare_by_name(scored, probabilities, task.class_names, str(path), settings)


if __name__ == "__main__":
    sys.exit(main())
