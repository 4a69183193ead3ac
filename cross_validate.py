#!/usr/bin/env python3
# PYTHON_ARGCOMPLETE_OK
"""Cross-validate a training by patient: every study is scored once, by a model that has not seen its patient.

python cross_validate.py --folds 5 --config my_study.yaml
python cross_validate.py --folds 5 --seeds 3 --config my_study.yaml --calibrate platt
python cross_validate.py --folds 1 --seeds 5 --config my_study.yaml     # one split, five trainings
python cross_validate.py --resume                                       # go on with the newest one
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from configs.differences import Difference, differences
from configs.errors import ConfigError, HybridMedNetError, TrainingError
from train import load_settings, train
from utils.arguments import EXIT_CODES, Parser, Values, split_known
from utils.command_line import run_script, show, use_log_format
from utils.log import log_to_file
from utils.runs.control import Control, Interrupted, discard_request
from utils.runs.files import CONFIG, SHARED_SETTINGS, SPLIT
from utils.runs.folder import RunFolder, model_file
from utils.runs.lock import FolderLock
from utils.text import aligned
from utils.training_arguments import add_training_settings, given_overrides

if TYPE_CHECKING:  # --help does without torch
    from collections.abc import Sequence

    from configs.default_config import Config
    from data.fold_plan import FoldPlan
    from evaluation.fitting import FitOptions
    from evaluation.folds_summary import Summary
    from evaluation.pooling import MemberScores, Pooled
    from utils.runs.cross_validation import CrossValidation, Member, Part, Validation

logger = logging.getLogger("cross_validate")

MOST_FOLDS, MOST_SEEDS = 1000, 1000
LOG = "cross_validation.log"
# What each run has of its own; what else may differ when a cross-validation goes on.
_OWN = ("DATA.split_file", "CHECKPOINT.save_dir", "LOGGING.run_name", "LOGGING.log_dir")
_ALSO_FREE = ("TRAIN.device",)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; torch is not imported for it."""
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_codes=f"{EXIT_CODES}, 143 after SIGTERM or a pause; --resume goes on",
        epilog="Folds, figures, and which variance is which: docs/cross_validation.md.",
    )
    add = parser.add_argument
    add("--folds", metavar="K", type=int, help="parts that are held out in turn (5); 1: the usual split each time")
    add("--seeds", metavar="N", type=int, help="trainings of each fold, from TRAIN.seed on (1)")
    add_training_settings(parser)
    validation = (
        "where each run's best epoch, thresholds and calibration come from: inner, drawn from the patients that it is "
        "trained on (default); held-out, the scored part itself, which is optimistic"
    )
    add("--validation", choices=("inner", "held-out"), help=validation)
    part = (
        "what the folds are of: all but the test part that the data name (default); train+val or train of the split "
        "that train.py would use; with train nothing but the folds is scored"
    )
    add("--part", choices=("all", "train", "train+val"), help=part)
    add("--leave-test", action="store_true", help="do not score the test part, while recipes are being chosen")
    add("--threshold", metavar="RULE", help="youden, f1, sensitivity=0.9 or specificity=0.95, on each run's validation")
    add("--calibrate", metavar="METHOD", help="temperature, platt or none, fitted on each run's validation part")
    add("--subgroups", metavar="COLUMN", action=Values, default=[], help="columns of the labels table")
    add("--vector", choices=("svg", "pdf"), help="write every figure as such a file too, for a paper")
    add("--draws", metavar="N", type=int, default=2000, help="bootstrap draws for the intervals (2000)")
    add("--dry-run", action="store_true", help="show who is in which fold, and train nothing")
    resume = "go on with a cross-validation's folder; alone: the newest"
    add("--resume", metavar="FOLDER", nargs="?", const="", help=resume)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Cross-validate; the exit code: 0, 2 for users' errors or a run that failed, 143 and 130 as train.py."""
    return run_script(lambda: run(parse_arguments(arguments)), arguments)


def run(options: argparse.Namespace) -> int:
    """Signals → `cross_validate` → the exit code."""
    control = Control().install()
    try:
        interrupted = cross_validate(options, control)
    except Interrupted as leaving:
        interrupted = leaving
    if interrupted is None:
        return 0
    logger.warning("%s: continue by --resume", control.reason or interrupted)
    return interrupted.exit_code


@dataclass(frozen=True)
class Campaign:
    """What is to be done. config: as the user gave it, nothing resolved. changed: settings without an effect on the
    figures that are not those of the beginning.
    """

    config: Config
    record: CrossValidation
    plan: FoldPlan
    changed: tuple[Difference, ...] = ()


def cross_validate(options: argparse.Namespace, control: Control) -> Interrupted | None:
    """The recipe: folds → a run each → pooled figures → the test part. What it was interrupted by, if it was.

    Raises HybridMedNetError, also where a run has failed: the others are trained all the same.
    """
    from data.splits.folds import composition_table
    from evaluation.fitting import FitOptions, bootstrap_settings
    from utils.runs.cross_validation import find_cross_validation

    fit_options, _ = FitOptions.parse(options.threshold, options.calibrate), bootstrap_settings(options.draws)
    with ExitStack() as until_the_end:
        resumed = None
        if options.resume is not None:
            resumed = find_cross_validation(options.resume, load_settings(options, None).CHECKPOINT.save_dir)
            if not options.dry_run:
                until_the_end.enter_context(FolderLock(resumed))
        campaign = begin(options) if resumed is None else go_on(options, resumed)
        plan = campaign.plan
        for note in plan.notes:
            logger.warning("%s", note)
        if options.dry_run:
            runs, seeds = len(campaign.record.members), ", ".join(map(str, campaign.record.seeds))
            show(f"{aligned(composition_table(plan.index, plan.folds))}\nruns: {runs}, seeds: {seeds}")
            return None
        check_figures(options, plan, fit_options)
        folder = RunFolder(resumed) if resumed else until_the_end.enter_context(create_folder(campaign))
        campaign.record.write(folder.path)  # on --resume it may have more seeds
        discard_request(folder.path)
        until_the_end.enter_context(control.watching(folder.path))
        until_the_end.enter_context(log_to_file(folder.path / LOG, campaign.config.LOGGING.format))
        interrupted = train_all(campaign, folder, control)
        if interrupted is None:
            report(options, campaign, folder, fit_options)
        return interrupted


def begin(options: argparse.Namespace) -> Campaign:
    """From the settings: data, folds, and the record of both."""
    from data.fold_plan import draw_plan
    from utils.runs.cross_validation import CrossValidation

    folds, seeds = 5 if options.folds is None else options.folds, 1 if options.seeds is None else options.seeds
    check_counts(options, folds, seeds)
    config = load_settings(options, None)
    use_log_format(config.LOGGING.format)
    validation: Validation = options.validation or "inner"
    part: Part = options.part or "all"
    seed = config.TRAIN.seed
    plan = draw_plan(config, folds, part, validation == "inner")
    all_seeds = tuple(range(seed, seed + seeds))
    return Campaign(config, CrossValidation(folds, seed, all_seeds, validation, part, plan.labels_sha256), plan)


def check_counts(options: argparse.Namespace, folds: int, seeds: int) -> None:
    """Raises ConfigError for counts of folds and seeds that there is nothing to do for."""
    for name, count, most in (("--folds", folds, MOST_FOLDS), ("--seeds", seeds, MOST_SEEDS)):
        if not 1 <= count <= most:
            raise ConfigError(f"{name} {count}: a whole number from 1 to {most}")
    if folds == seeds == 1:
        raise ConfigError("--folds 1 with one seed is what train.py does: use 2 folds or more, or --seeds 2 or more")
    asked = [f"--{name} {value}" for name in ("validation", "part") if (value := getattr(options, name))]
    if folds == 1 and asked:
        raise ConfigError(f"{', '.join(asked)}: with --folds 1 each training has the split of train.py")


def go_on(options: argparse.Namespace, folder: Path) -> Campaign:
    """From the files of a cross-validation; the settings may differ in what has no effect on the figures."""
    from configs.default_config import Config
    from data.fold_plan import read_plan
    from utils.runs.cross_validation import CrossValidation

    record = CrossValidation.read(folder)
    for name in ("folds", "validation", "part"):
        asked, had = getattr(options, name), getattr(record, name)
        if asked not in (None, had):
            raise ConfigError(f"--{name} {asked}: '{folder}' began with {had}, and goes on with that")
    have = len(record.seeds)
    seeds = have if options.seeds is None else options.seeds
    check_counts(options, record.folds, seeds)
    if seeds < have:
        raise ConfigError(f"--seeds {seeds}: '{folder}' has {have} already: more can be added, none left out")
    record = replace(record, seeds=tuple(range(record.seeds[0], record.seeds[0] + seeds)))
    before = Config.from_yaml(folder / SHARED_SETTINGS, saved=True)
    config = Config.from_yaml(options.config or folder / SHARED_SETTINGS, given_overrides(options))
    use_log_format(config.LOGGING.format)
    found = differences(before.model_dump(mode="json"), config.model_dump(mode="json"))
    matter = [str(one) for one in found if one.matters and one.key not in _ALSO_FREE]
    if matter:
        raise ConfigError(
            f"'{folder}' goes on with the settings that it began with, or its runs would not be of one kind: "
            f"{'; '.join(matter)}. Leave them as they were, or begin another one"
        )
    changed = tuple(one for one in found if one.key not in _OWN)
    return Campaign(config, record, read_plan(config, folder, record), changed)


def check_figures(options: argparse.Namespace, plan: FoldPlan, fit_options: FitOptions) -> None:
    """What is wrong with the figures asked for is said before the work, not after it."""
    options.subgroups = split_known(options.subgroups, plan.data.column_names())
    plan.data.columns(options.subgroups, plan.folds.rows(0))
    if fit_options.rule is not None and plan.task.kind == "most_probable_class":
        raise ConfigError(f"--threshold {fit_options.rule}: {plan.task.no_threshold()}")


def create_folder(campaign: Campaign) -> RunFolder:
    """A new one, locked, with the splits of all folds."""
    config = campaign.config
    if config.LOGGING.run_name:
        folder = RunFolder.create(config.CHECKPOINT.save_dir, config.LOGGING.run_name)
    else:
        name = f"cv-{config.MODEL.name}-{config.MODEL.backbone}-{time.strftime('%Y%m%d-%H%M%S')}"
        folder = RunFolder.create_numbered(config.CHECKPOINT.save_dir, name.replace("/", "_"))
    campaign.plan.write(folder.path)
    folder.write_text(SHARED_SETTINGS, config.to_yaml())
    logger.info("cross-validation %s: %d runs", folder.path, len(campaign.record.members))
    return folder


def train_all(campaign: Campaign, folder: RunFolder, control: Control) -> Interrupted | None:
    """Train what is not finished; what that was interrupted by. Raises TrainingError where runs have failed."""
    from utils.runs.cross_validation import resumable, standing

    failed: dict[str, str] = {}
    for number, member in enumerate(campaign.record.members, start=1):
        run = folder.path / member.run
        if standing(run) == "finished":
            logger.info("%s is finished", member.run)
            continue
        logger.info("%s: run %d of %d", member.run, number, len(campaign.record.members))
        resumed = run if run.is_dir() and resumable(run) else None
        try:
            result = train(settings(campaign, member, folder.path, resumed), resumed, control)
        except (HybridMedNetError, OSError, MemoryError) as error:
            failed[member.run] = str(error) or type(error).__name__
            logger.error("%s failed: %s", member.run, failed[member.run])
            continue
        if result.interrupted is not None:
            return result.interrupted
    if failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise TrainingError(
            f"{len(failed)} of {len(campaign.record.members)} runs failed ({reasons}). Without them there are no "
            f"pooled figures: correct what is wrong and go on by --resume {folder.path}"
        )
    return None


def settings(campaign: Campaign, member: Member, folder: Path, resumed: Path | None) -> Config:
    """Of one run, new or resumed."""
    from configs.default_config import Config
    from utils.runs.cross_validation import changed_settings, settings_of

    if resumed is not None and (resumed / CONFIG).is_file():
        return changed_settings(Config.from_yaml(resumed / CONFIG), campaign.changed)
    return settings_of(campaign.config, campaign.record, member, folder)


def report(options: argparse.Namespace, campaign: Campaign, folder: RunFolder, fit_options: FitOptions) -> None:
    """The pooled figures, those of each run, and of all runs as one model the test part, which none has seen."""
    from evaluate import evaluate
    from evaluate import parse_arguments as evaluate_arguments
    from evaluation.fitting import bootstrap_settings
    from evaluation.folds_summary import RunResults, summarise
    from evaluation.pooling import evaluate_pool

    plan, record, settings = campaign.plan, campaign.record, bootstrap_settings(options.draws)
    split = "out of fold" if record.folds > 1 else plan.folds.scored
    scored = [score_run(plan, folder.path / one.run, one, fit_options) for one in record.members]
    members = [one.scores for one in scored]
    runs = [
        RunResults(
            one.run, one.fold, one.seed, epoch, evaluate_pool([one], plan.task, plan.data, split, settings).results
        )
        for one, epoch in ((each.scores, each.epoch) for each in scored)
    ]
    seeds = {seed: [one for one in members if one.seed == seed] for seed in record.seeds}
    whole = evaluate_pool(members, plan.task, plan.data, split, settings, options.subgroups)
    of_seeds = {
        seed: evaluate_pool(own, plan.task, plan.data, split, settings).results if len(seeds) > 1 else whole.results
        for seed, own in seeds.items()
    }
    summary = summarise(whole.results, runs, of_seeds)
    write_report(options, campaign, folder, scored, whole, summary)
    if plan.has_test and record.part != "train" and not options.leave_test:
        asked = [
            "--split",
            "test",
            "--draws",
            str(options.draws),
            *(["--vector", options.vector] if options.vector else []),
        ]
        columns = ["--subgroups", *options.subgroups] if options.subgroups else []
        show(f"\nthe test part, which no run has seen, by all {len(members)} runs as one model:")
        evaluate(evaluate_arguments([str(folder.path), *asked, *columns]))


class ScoredRun(NamedTuple):
    """What a run gives for what it had held out; the epoch of its weights, facts about it, where it was computed."""

    scores: MemberScores
    epoch: int | None
    facts: dict[str, str]
    execution: tuple[str, str]


def score_run(plan: FoldPlan, run: Path, member: Member, fit_options: FitOptions) -> ScoredRun:
    """Ask a run's model about what it had held out, as evaluate.py does; what is fitted for it goes into its file."""
    from configs.followed import EVALUATE
    from configs.run_data import with_data_of_run
    from data.splits.saved_split import saved_split
    from evaluate import scorer
    from evaluation.about import model_facts
    from evaluation.fitting import operating_point
    from evaluation.pooling import MemberScores
    from models.saved_model import load_models
    from utils.checkpoint import keep_operating_point

    path = model_file(run)
    (saved,) = load_models([path], [], EVALUATE)
    split = saved_split(plan.index, run / SPLIT, saved.description.get("split_sha256"), True)
    data = replace(plan.data, split=split)
    score, execution = scorer(saved, with_data_of_run(saved.config, run), data)
    point, fitted = operating_point(
        fit_options, saved.description.get("operating_point"), lambda: data.labelled(*score("val")), plan.task
    )
    if fitted:
        keep_operating_point(path, point.as_dict(), split.own, saved.model.state_dict())
    (logits,), rows = score(plan.folds.scored)
    place = member.run, member.fold, member.seed
    scores = MemberScores.of(place, rows, logits, point, plan.task, saved.not_learnt())
    epoch = (saved.description.get("metrics") or {}).get("epoch")
    return ScoredRun(scores, epoch, model_facts(path, saved), execution)


def write_report(
    options: argparse.Namespace,
    campaign: Campaign,
    folder: RunFolder,
    scored: Sequence[ScoredRun],
    whole: Pooled,
    summary: Summary,
) -> None:
    """predictions.csv, report.html and what stands beside them, summary.json and folds.csv."""
    from data.splits.folds import composition_table
    from evaluation.about import about_models, unread_warnings
    from evaluation.evaluation_folder import write_evaluation
    from evaluation.folds_summary import folds_csv, format_tables, pooling_notes, pooling_warnings, summary_tables
    from evaluation.results_table import format_results_table

    plan, record, pool = campaign.plan, campaign.record, whole.pool
    tables = summary_tables(summary, record.folds)
    unread = unread_warnings(int((plan.folds.held >= 0).sum()) - len(pool.rows))
    warnings = [*unread, *pooling_warnings(summary)]
    notes = [*plan.notes, *pooling_notes(record.folds, len(record.seeds))]
    if plan.optimistic:
        warnings.insert(0, notes.pop(0))
    words = f"{whole.scored.split}: each study by the run that had held it out"
    about = replace(
        about_models(folder.path, [one.facts for one in scored], plan.data, words, pool.rows, scored[0].execution),
        title=f"{folder.path.name}, {whole.scored.split}",
        warnings=warnings,
        notes=notes,
        titles=campaign.config.DATA.class_titles or {},
        tables=tables,
    )
    places = [f"fold{fold}" if record.folds > 1 else plan.folds.scored for fold in pool.fold]
    names = (plan.data.images(pool.rows), plan.data.patients(pool.rows), places)
    before = pool.uncalibrated[:, list(plan.task.measured)] if whole.results["calibration"] else None
    write_evaluation(folder.path, whole.scored, before, whole.results, about, names, whole.findings, options.vector)
    about_folds = {"optimistic": plan.optimistic, "warnings": warnings, "notes": plan.notes}
    folder.write_json("summary.json", {**asdict(record), **about_folds, **summary})
    folder.write_text("folds.csv", folds_csv(summary, composition_table(plan.index, plan.folds)))
    show(f"{format_tables(tables)}\n\n{format_results_table(whole.results)}")
    logger.info("report, figures and out-of-fold predictions are in %s", folder.path)


if __name__ == "__main__":
    sys.exit(main())
