"""The routes: /predict, /model, /health, /ready, /metrics. Nothing here reads a file of the server."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inference.serve.metrics import CONTENT_TYPE
from inference.serve.problems import ProblemBody, ServeError, label
from inference.serve.service import Answers, ModelInfo, Service
from inference.serve.uploads import BodyLimit, check_length, read_request

logger = logging.getLogger("serve")

# Asked by whoever starts and watches containers, who has no key.
OPEN = ("/health", "/ready")
BODIES = 8  # of the largest size, that are held at a time
ROUTES = (*OPEN, "/predict", "/model", "/metrics", "/openapi.json")
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {
                        "images": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["data"],
                                "properties": {
                                    "name": {"type": "string"},
                                    "data": {"type": "string", "format": "byte"},
                                },
                            },
                        }
                    },
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


class Status(BaseModel):
    """Of the server."""

    status: str


def create_app(service: Service, key: str | None = None) -> FastAPI:
    """The application. key: what every request must bring, but for /health and /ready; None: nothing.

    It starts and stops the service's threads; at its end all that was taken is answered.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        yield
        await asyncio.to_thread(service.batcher.stop, 2 * service.limits.timeout_seconds)

    # No page of documentation: FastAPI's would load its scripts from a network.
    app = FastAPI(title="HybridMedNet", docs_url=None, redoc_url=None, lifespan=lifespan)
    _add_routes(app, service)
    app.add_exception_handler(ServeError, _refused)
    app.add_exception_handler(HTTPException, _no_such_route)
    most = service.limits.body_bytes
    app.add_middleware(BodyLimit, most=most, together=BODIES * most)
    app.add_middleware(Guard, service=service, key=key)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    # Any: FastAPI's own type.
    problem: dict[str, Any] = {"model": ProblemBody}
    refusals: dict[int | str, dict[str, Any]] = dict.fromkeys((400, 401, 408, 413, 415, 503, 504), problem)
    active = 0

    @app.post("/predict", responses={422: {"model": Answers}, **refusals}, response_model=Answers, openapi_extra=_BODY)
    async def predict(request: Request) -> Response:
        nonlocal active
        if service.batcher.ended or active >= service.limits.queue:
            raise service.busy(service.batcher.ended)
        active += 1
        try:
            check_length(request, service.limits)
            try:
                asked = await asyncio.wait_for(read_request(request, service.limits), service.limits.timeout_seconds)
            except TimeoutError:
                what = f"the body was not here after {service.limits.timeout_seconds:g} s"
                raise ServeError(408, what, "body", "send it faster, or fewer images at a time") from None
            answers = await service.answer(asked)
        finally:
            active -= 1
        status = 200 if any(answer.error is None for answer in answers.answers) else 422
        return JSONResponse(answers.model_dump(exclude_unset=True), status)

    @app.get("/model", responses=refusals)
    async def model() -> ModelInfo:
        return service.info

    @app.get("/health")
    async def health() -> Status:
        return Status(status="alive")

    @app.get("/ready", responses={503: problem})
    async def ready() -> Status:
        if service.batcher.problem:
            raise service.busy(service.batcher.problem)
        return Status(status="ready")

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)


class Guard:
    """ASGI middleware around everything: the key, the time a request takes, and an answer whatever happens inside."""

    def __init__(self, app: ASGIApp, service: Service, key: str | None) -> None:
        self.app, self.service, self.key = app, service, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        route = scope["path"] if scope["path"] in ROUTES else "other"
        begin, status = time.monotonic(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            status = message["status"] if message["type"] == "http.response.start" else status
            await send(message)

        try:
            if self.key is not None and scope["path"] not in OPEN:
                check_key(Request(scope), self.key)
            await self.app(scope, receive, noted)
        except ServeError as error:  # raised by a middleware, which no handler of exceptions sees
            await (await _refused(Request(scope), error))(scope, receive, noted)
        except ClientDisconnect:
            status = status or 499
        except Exception:
            logger.exception("%s %s failed", scope["method"], route)
            if not status:
                failed = ServeError(500, "the server has failed at this request", "", "see the server's log")
                await (await _refused(Request(scope), failed))(scope, receive, noted)
        seconds = time.monotonic() - begin
        self.service.metrics.answered(route, status, seconds)
        if route not in OPEN:  # asked every few seconds
            logger.info("%s %s %d in %.0f ms", scope["method"], route, status, 1000 * seconds)


def check_key(request: Request, key: str) -> None:
    """ServeError where a request brings another key or none: Authorization: Bearer KEY, or X-API-Key: KEY."""
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    given = given.strip() if kind.lower() == "bearer" else request.headers.get("x-api-key", "")
    if not hmac.compare_digest(given.encode(), key.encode()):
        what = "the key is wrong" if given else "there is no key"
        advice = "send 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
        raise ServeError(401, what, "Authorization", advice, {"WWW-Authenticate": "Bearer"})


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServeError), "registered for it"
    return JSONResponse(error.body.model_dump(), error.status, error.headers)


async def _no_such_route(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException), "registered for it"
    which = f"{request.method} {label(request.url.path)}"
    found = ServeError(error.status_code, str(error.detail), which, f"routes: {', '.join(ROUTES)}", error.headers)
    return JSONResponse(found.body.model_dump(), found.status, found.headers)
