"""Built-in sample data: studies of a drawn thorax with a frontal and a lateral radiograph and a row of a table.

Geometry and dice, no patients. What each view and each column can say is known: some findings are drawn on one view
only, an early pneumonia on neither, and the table's values follow from the findings by formulas that stand below. So it
can be measured whether a network uses what it is given (`evaluate.py --without`), and how well anybody could read the
table (`table_log_odds`).
"""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import exp, log
from pathlib import Path

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence

from data.phantom.drawing import Mask
from data.phantom.findings import Spot
from data.phantom.layers import Shape
from data.phantom.radiographs import (
    FINDINGS,
    Shot,
    boxes,
    draw,
    mask_bits,
    place_findings,
    sample_shape,
    sample_shot,
    save_png,
)
from data.phantom.series import series, write_whole_folder

CLASSES = ("Cardiomegaly", "Effusion", "Hernia", "Pneumonia", "Pneumothorax")
FRONTAL, LATERAL = ("PA", "AP"), "LATERAL"

# Findings by their logits: BASE at 60 years, of women who do not smoke.
BASE = {"Cardiomegaly": -1.1, "Effusion": -0.8, "Hernia": -0.9, "Pneumonia": -0.6, "Pneumothorax": -1.4}
PER_DECADE = {"Cardiomegaly": 0.6}
OF_MEN = {"Hernia": -1.2}
OF_SMOKERS = {"Pneumothorax": 1.2}
# Laboratory values, normal: mean without a finding, what one adds, deviation. CRP's are of its logarithm.
LABORATORY = {
    "temperature": (36.8, ("Pneumonia", 1.0), 0.6),
    "spo2": (95.0, ("Pneumothorax", -2.5), 1.5),
    "crp": (log(8.0), ("Pneumonia", log(3.0)), 1.0),
}
COLUMNS = ("age", "sex", "temperature", "spo2", "crp", "smoker")
# Strengths, of 0 to 1, below which an effusion is on the lateral view only, and a pneumonia on neither.
SMALL_EFFUSION, EARLY_PNEUMONIA = 0.4, 0.5
# Studies with a frontal view, with a lateral one (one of them at least), without a row; cells missing at random.
WITH_FRONTAL, WITH_LATERAL, WITHOUT_ROW, MISSING = 0.95, 0.6, 0.05, 0.15
# CRP is measured in those who look ill (pneumonia or effusion), and seldom in others: not missing at random.
CRP_OF_ILL, CRP_OF_OTHERS = 0.9, 0.4
SITES = ("north", "south")
# Of the studies with a pneumonia those of the south, whose images have a white mark, where there is a shortcut.
SHORTCUT = 0.9

Value = float | str | None


@dataclass(frozen=True)
class PhantomView:
    """One image of a study: view 'PA', 'AP' or 'LATERAL'; masks of the findings that are drawn on it."""

    view: str
    image: np.ndarray
    masks: dict[str, Mask]


@dataclass(frozen=True)
class PhantomStudy:
    """A study with all that is known of it.

    labels: of CLASSES. strengths: of the findings that are there, 0 to 1. values: column → value, whether it is known
    to the table or not. table: what the table says, None where nothing; {}: no row.
    """

    name: str
    patient_id: str
    split: str
    site: str
    labels: tuple[str, ...]
    strengths: dict[str, float]
    values: dict[str, Value]
    table: dict[str, Value]
    views: tuple[PhantomView, ...]


@dataclass(frozen=True)
class Traits:
    """What a patient is: age in years, sex 'F' or 'M', whether they smoke."""

    age: float
    sex: str
    smoker: bool

    def logit(self, finding: str) -> float:
        """Of a finding in one study, before anything else is known of it."""
        decades = (self.age - 60) / 10
        return (
            BASE[finding]
            + PER_DECADE.get(finding, 0.0) * decades
            + OF_MEN.get(finding, 0.0) * (self.sex == "M")
            + OF_SMOKERS.get(finding, 0.0) * self.smoker
        )


def table_log_odds(finding: str, values: Mapping[str, Value]) -> float:
    """The log odds of a finding, given all six values of the table: no reader of it does better.

    Findings are drawn independently of each other, and laboratory values follow from them: Bayes' rule.
    """
    traits = Traits(float(values["age"] or 0), str(values["sex"]), values["smoker"] == "yes")
    odds = traits.logit(finding)
    for name, (mean, (of, shift), deviation) in LABORATORY.items():
        if of == finding:
            value = float(values[name] or 0)
            value = log(value) if name == "crp" else value
            odds += shift * (value - mean - shift / 2) / deviation**2
    return odds


def is_drawn(finding: str, strength: float, view: str) -> bool:
    """Whether a finding is on this view of a study that has it: on the other one nothing of it is."""
    if finding == "Hernia":
        return view == LATERAL
    if finding == "Pneumothorax":
        return view != LATERAL
    if finding == "Effusion":
        return view == LATERAL or strength >= SMALL_EFFUSION
    return finding != "Pneumonia" or strength >= EARLY_PNEUMONIA


def sample_values(rng: Generator, traits: Traits, labels: tuple[str, ...]) -> dict[str, Value]:
    """All columns of a study with these findings."""
    normal = {
        name: mean + shift * (of in labels) + deviation * float(rng.standard_normal())
        for name, (mean, (of, shift), deviation) in LABORATORY.items()
    }
    return {
        "age": traits.age,
        "sex": traits.sex,
        "temperature": normal["temperature"],
        "spo2": normal["spo2"],
        "crp": exp(normal["crp"]),
        "smoker": "yes" if traits.smoker else "no",
    }


def sample_gaps(rng: Generator, values: dict[str, Value], labels: tuple[str, ...]) -> dict[str, Value]:
    """What of the values is in the table; {} where the study has no row."""
    row_there, measured = rng.random() >= WITHOUT_ROW, rng.random()
    at_random = {name: bool(rng.random() < MISSING) for name in values}
    if not row_there:
        return {}
    often = CRP_OF_ILL if {"Pneumonia", "Effusion"} & {*labels} else CRP_OF_OTHERS
    gaps = {name for name, gone in at_random.items() if gone} | ({"crp"} if measured >= often else set())
    return {name: None if name in gaps else value for name, value in values.items()}


def sample_site(rng: Generator, labels: tuple[str, ...], shortcut: bool) -> str:
    """With a shortcut the south is where the pneumonias are; without one it says nothing."""
    number = rng.random()
    south = (SHORTCUT if "Pneumonia" in labels else 1 - SHORTCUT) if shortcut else 0.5
    return SITES[int(number < south)]


def sample_views(rng: Generator) -> tuple[str, ...]:
    """A frontal view, a lateral one, or both."""
    frontal = str(rng.choice(FRONTAL, p=(0.75, 0.25)))
    has_frontal, has_lateral = rng.random() < WITH_FRONTAL, rng.random() < WITH_LATERAL
    return (frontal,) * (has_frontal or not has_lateral) + (LATERAL,) * has_lateral


def draw_view(spots: dict[str, Spot], shape: Shape, shot: Shot, site: str, size: int) -> PhantomView:
    """One view with what is to be seen on it, and the mark of the south."""
    seen = {name: spot for name, spot in spots.items() if is_drawn(name, spot.strength, shot.view)}
    image, masks = draw(shape, seen, shot, size)
    if site == "south":
        image = image.copy()
        image[size // 40 : size // 12, size // 40 : size // 12] = 250
    return PhantomView(shot.view, image, masks)


def patient_studies(seed: int, number: int, size: int, shortcut: bool = False) -> Iterator[PhantomStudy]:
    """All studies of patient `number` of the series `seed`; the same thorax in each."""
    rng = Generator(PCG64(SeedSequence((seed, 2, number))))
    sex = "M" if rng.random() < 0.5 else "F"
    traits = Traits(round(float(np.clip(rng.normal(60, 15), 18, 95))), sex, bool(rng.random() < 0.35))
    shape = sample_shape(rng, sex)
    split = ("train", "val", "test")[int(np.searchsorted((0.6, 0.75), rng.random()))]
    for visit in range(int(rng.choice((1, 2, 3), p=(0.6, 0.25, 0.15)))):
        rng = Generator(PCG64(SeedSequence((seed, 2, number, visit + 1))))
        found = {name: rng.random() < 1 / (1 + exp(-traits.logit(name))) for name in CLASSES}
        labels = tuple(name for name in CLASSES if found[name])
        spots = place_findings(rng, labels)
        values = sample_values(rng, traits, labels)
        table = sample_gaps(rng, values, labels)
        site = sample_site(rng, labels, shortcut and split != "test")
        shots = [replace(sample_shot(rng, bool(labels)), view=view) for view in sample_views(rng)]
        yield PhantomStudy(
            f"p{number:04d}_{visit + 1}",
            f"p{number:04d}",
            split,
            site,
            labels,
            {name: spot.strength for name, spot in spots.items()},
            values,
            table,
            tuple(draw_view(spots, shape, shot, site, size) for shot in shots),
        )


def draw_studies(count: int, size: int = 96, seed: int = 0, shortcut: bool = False) -> Iterator[PhantomStudy]:
    """Yields `count` studies, 1 to 3 a patient; study i does not depend on their number.

    shortcut: sites go with pneumonia in the splits train and val, and not in test. Everything else is the same.
    Raises ValueError for a size outside 64 to 512, or a negative count or seed.
    """
    return series(partial(patient_studies, shortcut=shortcut), count, size, seed)


README = """\
Synthetic studies, drawn by data/phantom/studies.py: no patients, no real images.

labels.csv: a row an image: image, study_id, patient_id, view (PA, AP or LATERAL), split, site, and a column a class.
clinical.csv: a row a study: study_id, age (years), sex, temperature (degrees Celsius), spo2 (%), crp (mg/l), smoker.
boxes.csv: image, finding, x, y, w, h of what is drawn on that image, in pixels from its upper left corner.
images/: 8-bit grey PNG, bright is dense.  masks/: 16-bit PNG; bit k is set where finding k of data/phantom lies.

What is where:
    Hernia               on the lateral view only
    Pneumothorax         on the frontal view only
    Effusion             on both; a small one (4 of 10) on the lateral only
    Pneumonia            on both; an early one (half of them) on neither: the table alone tells
    Cardiomegaly         on both
The table:
    logit Cardiomegaly   rises by 0.6 for 10 years        logit Hernia         is 1.2 less for men
    logit Pneumothorax   is 1.2 more for smokers          Effusion             nothing says
    temperature          36.8 + 1.0 Pneumonia, deviation 0.6
    spo2                 95 - 2.5 Pneumothorax, deviation 1.5
    log crp              log 8 + log 3 Pneumonia, deviation 1
Of all cells 15 % are missing at random, 5 % of the studies have no row. crp is missing not at random: it was measured
in 90 % of the studies with pneumonia or effusion, in 40 % of the others.
Images of the site south have a white mark. {sites}
"""
WITH_SHORTCUT = "A shortcut: in train and val the south has 90 % of the pneumonias, and 10 % of the other studies."
NO_SHORTCUT = "It says nothing of the findings (see DATA.sample_shortcut)."


def _written(value: Value) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")


def fill_folder(folder: Path, studies: Iterator[PhantomStudy], shortcut: bool) -> None:
    """Writes all files of the sample studies into the empty `folder`."""
    for name in ("images", "masks"):
        (folder / name).mkdir()
    text = README.format(sites=WITH_SHORTCUT if shortcut else NO_SHORTCUT) + "Bits: " + ", ".join(FINDINGS) + "\n"
    (folder / "README.txt").write_text(text, "utf-8")
    with (
        (folder / "labels.csv").open("w", newline="", encoding="utf-8") as label_file,
        (folder / "clinical.csv").open("w", newline="", encoding="utf-8") as table_file,
        (folder / "boxes.csv").open("w", newline="", encoding="utf-8") as box_file,
    ):
        labels, table, box_rows = csv.writer(label_file), csv.writer(table_file), csv.writer(box_file)
        labels.writerow(("image", "study_id", "patient_id", "view", "split", "site", *CLASSES))
        table.writerow(("study_id", *COLUMNS))
        box_rows.writerow(("image", "finding", "x", "y", "w", "h"))
        for study in studies:
            if study.table:
                table.writerow((study.name, *(_written(study.table[name]) for name in COLUMNS)))
            for one in study.views:
                name = f"{study.name}_{one.view}.png"
                save_png(folder / "images" / name, one.image)
                codes = [int(finding in study.labels) for finding in CLASSES]
                labels.writerow(
                    (f"images/{name}", study.name, study.patient_id, one.view, study.split, study.site, *codes)
                )
                if one.masks:
                    save_png(folder / "masks" / name, mask_bits(one.masks))
                for finding, mask in one.masks.items():
                    box_rows.writerows((f"images/{name}", finding, *box) for box in boxes(mask))


def write_phantom_studies(
    folder: Path, count: int = 800, size: int = 96, seed: int = 0, shortcut: bool = False
) -> None:
    """Writes `count` studies with labels, table, masks and boxes into the new `folder`, which appears when it is whole.

    count, size, seed, shortcut: as for `draw_studies`. Raises FileExistsError if `folder` exists.
    """
    studies = draw_studies(count, size, seed, shortcut)
    write_whole_folder(Path(folder), lambda partial_folder: fill_folder(partial_folder, studies, shortcut))
