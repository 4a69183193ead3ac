"""What a client is told where something is wrong: what, which, and what to do; never a traceback."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, Field

from utils.text import printable

_LONGEST = 200


class Problem(BaseModel):
    """What is wrong with a request."""

    what: str = Field(description="what is wrong, and which value")
    which: str = Field(description="of the request: an image's name, a field, a header, or ''")
    advice: str = Field(description="what is allowed, and what to do")


class ProblemBody(BaseModel):
    """The body of every answer whose status is 400 or more, but for 422 of images that cannot be read."""

    error: Problem


class ServeError(Exception):
    """A request that is refused. status: of HTTP. headers: of the answer."""

    def __init__(
        self, status: int, what: str, which: str, advice: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(what)
        self.status, self.headers = status, dict(headers or {})
        self.problem = Problem(what=what, which=label(which), advice=advice)

    @property
    def body(self) -> ProblemBody:
        """What is sent."""
        return ProblemBody(error=self.problem)


def label(name: str) -> str:
    """A client's name of an image for answers and messages: on one line, escaped, at most 200 characters."""
    text = printable(name)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
