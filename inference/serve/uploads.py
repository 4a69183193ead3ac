"""From a request's body to the images in it: multipart, JSON with base64, or one image's bytes alone."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inference.serve.limits import Limits
from inference.serve.problems import ServeError, label

KINDS = (
    "multipart/form-data with fields 'image', application/json, image/*, application/dicom, application/octet-stream"
)
_ONE_IMAGE = ("application/dicom", "application/octet-stream")
_FIELDS = 8  # of multipart, that are no images


@dataclass(frozen=True)
class Upload:
    """One image: what the client calls it, its bytes, and what is said of it (a study's views)."""

    name: str
    content: bytes


@dataclass(frozen=True)
class Asked:
    """What a request asks: its images, and what else it says, by name."""

    images: tuple[Upload, ...]
    fields: Mapping[str, object] = field(default_factory=dict)


class BodyLimit:
    """ASGI middleware: a body is refused as soon as it is longer than `most`, whether it said its length or not, and
    while all that are here are longer than `together`.
    """

    def __init__(self, app: ASGIApp, most: int, together: int) -> None:
        self.app, self.most, self.together, self.held = app, most, together, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            size = len(message.get("body", b""))
            seen, self.held = seen + size, self.held + size
            if seen > self.most:
                raise too_long(self.most)
            if self.held > self.together:
                what = f"requests of more than {self.together / 1e6:g} MB are here already"
                advice = "try again after the seconds of Retry-After"
                raise ServeError(503, what, "body", advice, {"Retry-After": "1", "Connection": "close"})
            return message

        try:
            await self.app(scope, counted, send)
        finally:
            self.held -= seen


def check_length(request: Request, limits: Limits) -> None:
    """ServeError for a Content-Length that is none or beyond the limit, before anything is read."""
    said = request.headers.get("content-length")
    if said is None:
        return
    if not said.isascii() or not said.isdigit():
        raise ServeError(400, f"Content-Length is {label(said)!r}", "Content-Length", "send the number of bytes")
    if int(said) > limits.body_bytes:
        raise too_long(limits.body_bytes)


def too_long(most: int) -> ServeError:
    """For a body beyond the limit."""
    return ServeError(
        413,
        f"the body has more than {most / 1e6:g} MB",
        "body",
        "send fewer or smaller images, or start the server with a larger --max-megabytes",
        {"Connection": "close"},
    )


async def read_request(request: Request, limits: Limits) -> Asked:
    """The images of a request. Raises ServeError for another kind of body, and for too many images or none."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        asked = await _of_form(request, limits)
    elif kind == "application/json":
        asked = await asyncio.to_thread(_of_json, await request.body(), limits)  # others are answered meanwhile
    elif kind.startswith("image/") or kind in _ONE_IMAGE:
        asked = Asked((Upload("image", await request.body()),))
    else:
        raise ServeError(415, f"Content-Type is {label(kind)!r}", "Content-Type", f"send {KINDS}")
    if len(asked.images) > limits.images:
        raise _too_many(limits)
    return asked


def _too_many(limits: Limits) -> ServeError:
    return ServeError(
        413,
        f"more than {limits.images} images",
        "image",
        "send them in several requests, or start the server with a larger --max-images",
    )


async def _of_form(request: Request, limits: Limits) -> Asked:
    images: list[Upload] = []
    fields: dict[str, object] = {}
    try:
        form = await request.form(max_files=limits.images, max_fields=_FIELDS, max_part_size=limits.body_bytes)
    except HTTPException as error:
        if "Too many files" in str(error.detail):
            raise _too_many(limits) from None
        raise ServeError(400, f"the form cannot be read: {label(str(error.detail))}", "body", f"send {KINDS}") from None
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name != "image":
                    raise ServeError(400, "a file in another field", name, "send each image in a field called 'image'")
                images.append(Upload(value.filename or "image", await value.read()))
            elif name in fields:
                raise ServeError(400, "the field is there twice", name, "send it once")
            else:
                fields[name] = _parsed(value, name)
    finally:
        await form.close()
    return Asked(tuple(images), fields)


def _parsed(text: str | bytes, which: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ServeError(400, f"it is no JSON ({label(str(error))})", which, "send JSON") from None


def _of_json(body: bytes, limits: Limits) -> Asked:
    values = _parsed(body, "body")
    form = 'send {"images": [{"name": "a.png", "data": "<base64>"}, …]}'
    if not isinstance(values, dict) or not isinstance(values.get("images"), list):
        raise ServeError(400, "there is no list 'images'", "images", form)
    if len(values["images"]) > limits.images:
        raise _too_many(limits)
    images = [_of_record(number, record, form) for number, record in enumerate(values.pop("images"), 1)]
    return Asked(tuple(images), values)


def _of_record(number: int, record: object, form: str) -> Upload:
    which = f"image {number}"
    if not isinstance(record, dict) or set(record) - {"name", "data"} or not isinstance(record.get("data"), str):
        raise ServeError(400, "an entry of 'images' is no object of 'data' and perhaps 'name'", which, form)
    name = record.get("name", which)
    if not isinstance(name, str):
        raise ServeError(400, "its name is no text", which, form)
    try:
        return Upload(name, base64.b64decode(record["data"], validate=True))
    except (binascii.Error, ValueError) as error:
        raise ServeError(400, f"its data are no base64 ({error})", name, form) from None
