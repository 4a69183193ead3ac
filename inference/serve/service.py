"""What stands between requests and the model: questions of a request, and its answers as predict.py would give them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, Field

from configs.errors import DataError, HybridMedNetError
from inference.ensemble import Ensemble
from inference.serve.batching import Batcher, QueueFullError
from inference.serve.limits import Limits
from inference.serve.metrics import Metrics
from inference.serve.problems import ServeError, label
from inference.serve.uploads import Asked
from utils.batch import Inputs


class Answer(BaseModel):
    """What is said of an image, or of a study of that name."""

    name: str
    probabilities: dict[str, float] | None = Field(description="by class; null where there is an error")
    findings: list[str] | None = Field(description="classes that are called, by the decision of /model")
    warnings: list[str] = Field(description="what is unlike the training images, and what its reader remarked")
    error: str | None = Field(description="why it could not be predicted")
    images: list[str] | None = Field(default=None, description="of a study")
    missing: list[str] | None = Field(default=None, description="columns and views that a study lacks")


class Answers(BaseModel):
    """Of a request. kind: what its entries are."""

    kind: str
    answers: list[Answer]


class ModelInfo(BaseModel):
    """What is served."""

    kind: str = Field(description="images, volumes or studies")
    classes: list[str]
    task: str
    decision: Mapping[str, object] = Field(description="how classes are called from probabilities")
    threshold_source: str
    no_positive_in_training: list[str]
    test_time_augmentation: bool
    models: Sequence[Mapping[str, object]] = Field(
        description="of an ensemble: file, sha256, backbone, calibration, input"
    )
    limits: Mapping[str, float]
    packages: Mapping[str, str | None]
    device: str
    precision: str = Field(description="which the model computes in, as it was trained")
    fields: Mapping[str, str] = Field(description="what a request may say beside its images")


@dataclass(frozen=True)
class ReadRow:
    """An image or a study. images, missing: of a study. error: why nothing of it could be read; it has no row among
    the inputs then.
    """

    name: str
    warnings: tuple[str, ...] = ()
    images: tuple[str, ...] | None = None
    missing: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class ReadRows:
    """What was read of a question, see ReadQuestion of batching.py."""

    inputs: tuple[Inputs, ...]
    merges: bool
    rows: tuple[ReadRow, ...]


class Service:
    """ensemble: of the model. read: makes inputs of one image of a request; of a whole request to a model of studies.
    check: of studies, whether a request is one (it raises ServeError); None: images are asked about one by one.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        read: Callable[[Asked], ReadRows],
        limits: Limits,
        info: ModelInfo,
        check: Callable[[Asked], object] | None = None,
    ) -> None:
        self.ensemble, self.limits, self.info, self._check_studies = ensemble, limits, info, check
        self.together = check is not None
        said = {"sha256": ", ".join(str(one.get("sha256", "")) for one in info.models), "task": info.task}
        self.metrics = Metrics(lambda: float(self.batcher.waiting), said)
        self.batcher: Batcher[Asked, ReadRows] = Batcher(
            read, self._ask, self.metrics, limits.queue, limits.batch, limits.wait_seconds
        )

    def _ask(self, inputs: Sequence[Inputs]) -> np.ndarray:
        device = self.ensemble.members[0].predictor.device
        return self.ensemble.probabilities([one.to(device) for one in inputs])

    async def answer(self, asked: Asked) -> Answers:
        """Of a request. Raises ServeError where it cannot be taken or is not answered in time."""
        self._check(asked)
        questions = [asked] if self.together else [Asked((image,), asked.fields) for image in asked.images]
        try:
            futures = self.batcher.submit([(one, len(one.images)) for one in questions])
        except QueueFullError as full:
            raise self.busy(self.batcher.ended, full.seconds) from None
        wrapped = [asyncio.wrap_future(future) for future in futures]
        _, late = await asyncio.wait(wrapped, timeout=self.limits.timeout_seconds)
        if late:
            for future in wrapped:
                future.cancel()
            raise ServeError(
                504,
                f"there is no answer after {self.limits.timeout_seconds:g} s",
                "",
                "send fewer images at a time or later, or start the server with a larger --timeout",
            )
        answers = [answer for one, future in zip(questions, wrapped, strict=True) for answer in self._of(one, future)]
        failed = sum(answer.error is not None for answer in answers)
        self.metrics.outcome("predicted", len(answers) - failed)
        self.metrics.outcome("error", failed)
        return Answers(kind=self.info.kind, answers=answers)

    def busy(self, why: str = "", seconds: float = 0.0) -> ServeError:
        """That nothing is taken now, and when to come again. why: '' where there is no room."""
        return ServeError(
            503,
            why or f"{self.limits.queue} images wait already",
            "",
            "try again after the seconds of Retry-After",
            {"Retry-After": str(max(1, math.ceil(seconds)))},
        )

    def _check(self, asked: Asked) -> None:
        unknown = [name for name in asked.fields if name not in self.info.fields]
        if unknown:
            known = ", ".join(self.info.fields) or "none: this model takes images alone"
            raise ServeError(400, "the field is not known", unknown[0], f"fields beside the images: {known}")
        if not asked.images:
            raise ServeError(400, "there is no image", "image", "send one or more")
        if self._check_studies is not None:
            self._check_studies(asked)

    def _of(self, asked: Asked, future: asyncio.Future[tuple[ReadRows, np.ndarray]]) -> list[Answer]:
        """The answers of a question: what cannot be read is an answer with its error."""
        error = future.exception()
        if isinstance(error, DataError) and not self.together:
            return [_failed(label(asked.images[0].name), str(error))]
        if isinstance(error, HybridMedNetError):
            of_request = isinstance(error, DataError)
            raise ServeError(
                400 if of_request else 500, str(error), "studies" if of_request else "", "see docs/serving.md"
            )
        if error is not None:
            raise error
        read, probabilities = future.result()
        rows = iter(probabilities)
        return [self._answer(row, None if row.error else next(rows)) for row in read.rows]

    def _answer(self, row: ReadRow, probabilities: np.ndarray | None) -> Answer:
        names = self.ensemble.class_names
        if probabilities is None:
            answer = _failed(row.name, row.error)
        elif not np.isfinite(probabilities).all():
            answer = _failed(row.name, "a model gives NaN for it")
        else:
            called = [names[k] for k in self.ensemble.decision.findings(probabilities)]
            given, said = dict(zip(names, probabilities.tolist())), list(row.warnings)
            answer = Answer(name=row.name, probabilities=given, findings=called, warnings=said, error=None)
        if row.images is None:
            return answer
        return answer.model_copy(update={"images": list(row.images), "missing": list(row.missing)})


def _failed(name: str, error: str) -> Answer:
    return Answer(name=name, probabilities=None, findings=None, warnings=[], error=error)
