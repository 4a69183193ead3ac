"""What an exported file says of itself: texts by name, those of structure as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from configs.default_config import Config
from configs.errors import CheckpointError
from configs.section import settled
from deployment.exported_studies import CategoricalColumn, NumericColumn, StudyForm
from deployment.preparation import SCHEMA_VERSION, describe_input
from utils.environment import describe_environment

PROGRAM = "HybridMedNet"
CALIBRATED = "calibrated probabilities"


def export_metadata(
    config: Config,
    class_names: Sequence[str],
    coarse_classes: Sequence[str],
    preprocessing: Mapping[str, object],
    operating_point: Mapping[str, object] | None,
    decision: Mapping[str, object],
    output: str,
    checkpoint: Path,
    form: StudyForm | None = None,
    calibration: Mapping[str, object] | None = None,
) -> dict[str, str]:
    """Name → text. form: of a model of studies.

    JSON: classes, coarse_classes (those of the second output, [] where there is none), preprocessing (`as_dict` of
    data's Preprocess), input (how an image becomes the input, in full, see deployment/preparation.py), calibration (as
    stored, with `applied`, whether it is in the file; 'null' without one), operating_point ('null' where none was
    fitted; its thresholds are on calibrated probabilities), decision (how predict.py calls classes from the
    probabilities, see utils.decision.DecisionRecord), libraries (name → version, of what wrote the file).
    Words: task, backbone, attention as in the settings; output: what the numbers are; program, program_commit, torch:
    what wrote the file; checkpoint, checkpoint_sha256: what it was made of; schema_version.
    Of studies, JSON: max_views; view_kinds by their code, [] where the model joins no views; table: a record a column,
    its name and kind, of a numeric one mean, std, clip, and training's low and high, of a categorical one its
    categories by their code, from 1 on; missing_told: columns of which the network is told that they are missing.
    """
    model, environment = config.MODEL, describe_environment("cpu", "fp32")
    applied = output == CALIBRATED
    return {
        "schema_version": SCHEMA_VERSION,
        "classes": _json(list(class_names)),
        "coarse_classes": _json(list(coarse_classes)),
        "preprocessing": _json(preprocessing),
        "input": describe_input(preprocessing, form is not None).model_dump_json(),
        "calibration": _json(None if calibration is None else {**calibration, "applied": applied}),
        "operating_point": _json(operating_point),
        "decision": _json(decision),
        "task": settled(model.task, "MODEL.task"),
        "output": output,
        "backbone": model.backbone,
        "attention": model.attention,
        "program": PROGRAM,
        "program_commit": environment["git_commit"] or "unknown",
        "torch": environment["packages"]["torch"] or "unknown",
        "libraries": _json({name: version for name, version in environment["packages"].items() if version}),
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": file_digest(checkpoint),
        **({} if form is None else _of_studies(form)),
    }


def _of_studies(form: StudyForm) -> dict[str, str]:
    kinds = {NumericColumn: "numeric", CategoricalColumn: "categorical"}
    table = [{"kind": kinds[type(one)], **asdict(one)} for one in form.columns]
    return {
        "max_views": _json(form.max_views),
        "view_kinds": _json(list(form.view_kinds)),
        "table": _json(table),
        "missing_told": _json(list(form.indicators)),
    }


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. Raises CheckpointError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}") from None


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
