"""Which settings a command follows that works with a saved model: the checkpoint has the others.

A setting that has no effect in a command is refused there, rather than accepted without a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from configs.errors import ConfigError

# Facts that a file may be silent about (files of the previous release are) → the settings that say them instead.
PREPROCESSING, CLASS_NAMES, TASK, COARSE_GROUPS = "preprocessing", "class names", "task", "coarse groups"
INSTEAD = {
    PREPROCESSING: (
        "DATA.image_size",
        "MODEL.input_size",
        "DATA.spacing_mm",
        "DATA.window",
        "DATA.resize",
        "DATA.mean",
        "DATA.std",
    ),
    CLASS_NAMES: ("DATA.class_names",),
    TASK: ("MODEL.task",),
    COARSE_GROUPS: ("MODEL.coarse_groups",),
}
_SOURCE = (
    "DATA.data_dir",
    "DATA.labels_file",
    "DATA.format",
    "DATA.columns",
    "DATA.ignore_columns",
    "DATA.encoding",
    "DATA.study_column",
    "DATA.view_kinds",
    "DATA.table.file",
)
_OPENING = (
    "DATA.patient_ids",
    "DATA.allow_missing_images",
    "DATA.check_duplicates",
    "DATA.max_views",
    "DATA.required_views",
    "DATA.sample_count",
    "DATA.sample_size",
    "DATA.sample_shortcut",
)
_DECIDING = ("DATA.positive_class",)
_PRECISION = ("TRAIN.mixed_precision", "TRAIN.channels_last")
_READING = (
    "DATA.uncertain_labels",
    "DATA.max_bad_images",
    "DATA.num_workers",
    "DATA.worker_timeout",
    "DATA.max_worker_failures",
    "TRAIN.batch_size",
    "TRAIN.device",
    *_PRECISION,
    "LOGGING.progress",
)

OF_EVERY_COMMAND = ("LOGGING.format",)  # as --log-format


@dataclass(frozen=True)
class Followed:
    """The settings that a command follows.

    keys: always. facts: of INSTEAD, those it needs; their settings are followed where a file is silent about them.
    """

    command: str
    keys: tuple[str, ...]
    facts: tuple[str, ...] = (PREPROCESSING, CLASS_NAMES, TASK)

    def follows(self, key: str, silent: Iterable[str] = ()) -> bool:
        """Whether a setting, 'SECTION.key', has an effect with a file that is silent about some facts."""
        return key in (*self.keys, *OF_EVERY_COMMAND) or any(
            key in INSTEAD[fact] for fact in silent if fact in self.facts
        )

    def of(self, overrides: Mapping[str, Sequence[str]], silent: Iterable[str]) -> list[str]:
        """Those overrides (text → the keys it names) that have an effect with such a file."""
        silent = tuple(silent)
        return [text for text, keys in overrides.items() if all(self.follows(key, silent) for key in keys)]

    def check(self, overrides: Mapping[str, Sequence[str]], silent: Sequence[Iterable[str]]) -> None:
        """ConfigError naming the settings that have an effect with none of the files; silent: one entry per file."""
        given = dict.fromkeys(key for keys in overrides.values() for key in keys)
        idle = [key for key in given if not any(self.follows(key, facts) for facts in silent)]
        if idle:
            raise ConfigError(
                f"--set {', '.join(idle)}: no effect in {self.command}, which goes by the checkpoint; followed here: "
                f"{self.describe()}"
            )

    def describe(self) -> str:
        """The settings in words, for --help and errors."""
        silent = [key for fact in self.facts for key in INSTEAD[fact]]
        always = f"{', '.join(self.keys)}; " if self.keys else ""
        return f"{always}where the checkpoint does not say it, {', '.join(silent)}"


_REGIONS = ("LOSS.attention.boxes", "LOSS.attention.masks")
EVALUATE = Followed("evaluate.py", (*_SOURCE, *_OPENING, *_DECIDING, *_READING, "DATA.class_titles", *_REGIONS))
EXPLAIN = Followed("python -m explain", (*_SOURCE, *_OPENING, *_DECIDING, "TRAIN.device"))
# Of models of studies alone: which images are one, and what they show.
OF_STUDIES = ("DATA.study_column", "DATA.view_kinds", "DATA.max_views")
PREDICT = Followed("predict.py", (*_DECIDING, *_PRECISION, "DATA.columns", "DATA.encoding", *OF_STUDIES))
SERVE = Followed("python -m inference.serve", (*_DECIDING, *_PRECISION))
EXPORT = Followed("export.py", (*_SOURCE, *_OPENING, *_DECIDING), (PREPROCESSING, CLASS_NAMES, TASK, COARSE_GROUPS))
# What is written into the new file is followed by those who read it; paths in a file never are.
CONVERT = Followed(
    "python -m utils.checkpoint convert",
    (*_OPENING, *_READING),
    (PREPROCESSING, CLASS_NAMES, TASK, COARSE_GROUPS),
)
COMMANDS = (EVALUATE, EXPLAIN, PREDICT, SERVE, EXPORT, CONVERT)
