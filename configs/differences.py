"""What a resumed run's settings change, and which of the changes matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Settings that a resumed run may change and end with the same weights. TRAIN.epochs and the like do matter: the
# learning rate follows them.
WITHOUT_EFFECT = (
    "MODEL.name",
    "MODEL.pretrained",  # a resumed run has all its weights
    "MODEL.init_from",
    "MODEL.gradient_checkpointing",
    "TRAIN.on_oom",
    "TRAIN.max_nonfinite_steps",
    "DATA.data_dir",  # the images' names and patients are compared with the run's split.csv
    "DATA.class_titles",
    "DATA.num_workers",
    "DATA.cache_dir",  # DATA.cache itself rounds images of more than 8 bits
    "DATA.cache_check",
    "DATA.positive_class",  # of figures and calls, not of the training
    "DATA.worker_timeout",
    "DATA.max_worker_failures",
    "DATA.split_file",  # split.csv stays
    "DATA.train_split",
    "DATA.val_split",
    "DATA.test_split",
    "DATA.allow_patient_overlap",
    "DATA.patient_ids",
    "DATA.allow_missing_images",
    "DATA.check_duplicates",
    "DATA.max_bad_images",
    "DATA.max_views",
    "DATA.table.file",  # what is in it is compared with the checkpoint's
    "DATA.sample_count",
    "DATA.sample_size",
    "CHECKPOINT.save_dir",
    "CHECKPOINT.save_freq",
    "CHECKPOINT.save_every_steps",
    "CHECKPOINT.save_best",
    "CHECKPOINT.on_save_error",
    "LOGGING",
)

# Mappings of names that are a value of their own.
_WHOLE = (
    "MODEL.coarse_groups",
    "MODEL.table_columns",
    "DATA.columns",
    "DATA.class_titles",
    "DATA.view_kinds",
    "DATA.table.columns",
    "DATA.sampling",
)


# What runs of versions did that did not have these settings yet.
_IMPLIED: dict[str, object] = {
    "CHECKPOINT.best_by": "mean_auroc",
    "TRAIN.freeze": "none",
    "TRAIN.unfreeze_epoch": None,
    "TRAIN.backbone_learning_rate_factor": 1.0,
    "TRAIN.layer_decay": 1.0,
    "DATA.sampling": "none",
    "DATA.mixup": 0.0,
    "DATA.cutmix": 0.0,
    "DATA.mix_probability": 1.0,
    "LOSS.correct_prior": True,
}


@dataclass(frozen=True)
class Difference:
    """A setting that is not what it was; matters: whether the weights will be others than without the change."""

    key: str
    before: object
    now: object
    matters: bool

    def __str__(self) -> str:
        return f"{self.key} {self.before!r} → {self.now!r}"


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> list[Difference]:
    """What differs between two dumped configs ({'TRAIN': {'batch_size': 32, …}, …}), in their order."""
    old, new = {**_IMPLIED, **dict(_flatten(before))}, dict(_flatten(now))
    absent = "(unknown)"
    return [
        Difference(key, old.get(key, absent), new.get(key, absent), not _within(key, WITHOUT_EFFECT))
        for key in (*new, *(key for key in old if key not in new))
        if old.get(key, absent) != new.get(key, absent)
    ]


def _within(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _flatten(settings: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping) and f"{prefix}{key}" not in _WHOLE:
            rows += _flatten(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows
