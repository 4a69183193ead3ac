"""Names of the files in a run's folder."""

CONFIG, SPLIT, LOG, LOCK = "config.yaml", "split.csv", "train.log", ".lock"
LABELS, DOCTOR = "labels.json", "doctor.json"
LAST, PREVIOUS, BEST, EPOCHS = "last.pth", "previous.pth", "best_model.pth", "epoch_*.pth"
METRICS, STEPS = "metrics.jsonl", "steps.jsonl"
STATUS, CONTROL, TRACKERS = "status.json", "control", "trackers.json"
# Of a cross-validation: what it is of, and the settings that its runs share.
CROSS_VALIDATION, SHARED_SETTINGS, FOLD_SPLITS = "cross_validation.json", "settings.yaml", "splits"


def epoch_file(epoch: int) -> str:
    """The checkpoint that is kept of an epoch, counted from 1 (see EPOCHS for all of them)."""
    return f"epoch_{epoch:04d}.pth"
