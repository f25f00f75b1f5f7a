"""The server's HTTP interface: a FastAPI app over a `Service`, without Ray.

    POST /v1/predict   GET /v1/tasks   /healthz   /metrics   /docs   and the page at /

Every answer that is not one says cause, value and remedy. Headers keep a browser from loading
anything from elsewhere; where a token is set, all but the page's own files and /healthz need it.
"""

import hmac
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib import metadata
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmtrain.serving.config import ServingConfig
from mmtrain.serving.meters import Meters, add_up
from mmtrain.serving.networks import Networks
from mmtrain.serving.problems import RequestError, to_problem
from mmtrain.serving.schema import (
    HealthAnswer,
    PredictAnswer,
    PredictRequest,
    ProblemAnswer,
    TasksAnswer,
    to_network,
    to_task,
)
from mmtrain.serving.service import Service
from pipelines.errors import MMTrainError

PAGE = Path(__file__).with_name("page")
_OPEN = ("/", "/healthz", "/docs")  # and all under /page/
_REFUSALS = (400, 401, 408, 413, 415, 422, 429, 504)
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' blob: data:; media-src blob:; form-action 'none'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
}
Collect = Callable[[], Awaitable[Sequence[str]]]


def build_app(
    networks: Networks, config: ServingConfig, *, peers: Collect | None = None
) -> FastAPI:
    """The app of one replica.

    Args:
        networks: that answer.
        config: batches, bounds and token.
        peers: counts of all replicas, this one among them; None: there is this one alone.
    """
    meters = Meters()
    service = Service(networks, config=config, meters=meters)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        yield
        await service.close()

    app = FastAPI(
        title="mmtrain",
        version=metadata.version("mmtrain"),
        description="One model, many tasks in many modalities.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses={500: {"model": ProblemAnswer, "description": "Our mistake"}},
    )
    app.state.service, app.state.meters = service, meters
    _add_routes(app, service, meters=meters, peers=peers)
    _add_pages(app)
    _add_refusals(app)
    token = config.token.get_secret_value() if config.token else None
    app.add_middleware(Shield, token=token, meters=meters)
    return app


def _add_routes(app: FastAPI, service: Service, *, meters: Meters, peers: Collect | None) -> None:
    @app.post(
        "/v1/predict",
        response_model=PredictAnswer,
        responses=_refusals(*_REFUSALS),
        openapi_extra=_predict_body(),
        summary="Answer an input",
    )
    async def predict(request: Request) -> Response:
        """By one task, or by every task of the input's modality."""
        answer = await service.predict(request)
        return Response(answer.model_dump_json(), media_type="application/json")

    @app.get("/v1/tasks", responses=_refusals(401), summary="List tasks, networks and limits")
    async def tasks() -> TasksAnswer:
        """Tasks with what they take and give, networks with their sizes, and all limits."""
        networks = service.networks
        return TasksAnswer(
            tasks=[to_task(name, networks) for name in networks.tasks],
            networks=[to_network(one, whole=networks.whole_of(one)) for one in networks.networks],
            limits=service.config.limits,
        )

    @app.get("/healthz", summary="Whether the models are loaded")
    async def healthz() -> HealthAnswer:
        """Answers as soon as they are."""
        return HealthAnswer(status="ok")

    @app.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses=_refusals(401),
        summary="Counts for Prometheus",
    )
    async def metrics() -> Response:
        """Requests, their times, sizes of batches; added up over the replicas."""
        meters.held.set(service.door.requests)
        text = add_up(await peers()) if peers else meters.text()
        return Response(text, media_type=CONTENT_TYPE_LATEST)


def _add_pages(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(PAGE / "docs.html")

    app.mount("/page", StaticFiles(directory=PAGE), name="page")


def _add_refusals(app: FastAPI) -> None:
    async def refuse(request: Request, error: Exception) -> JSONResponse:
        where = f"{request.method} {request.url.path}"
        return to_problem(error, where=where).to_response()

    for kind in (MMTrainError, HTTPException, Exception):
        app.add_exception_handler(kind, refuse)


class Shield:
    """Around the app: asks for the token, adds the headers, counts.

    Args:
        app: the app.
        token: that requests must bring; None: none.
        meters: that count.
    """

    def __init__(self, app: ASGIApp, *, token: str | None, meters: Meters) -> None:
        self._app, self._meters = app, meters
        self._expected = token.encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s, status = time.monotonic(), 500

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        try:
            if self._may_enter(scope):
                await self._app(scope, receive, send_on)
            else:
                await _no_token()(scope, receive, send_on)
        finally:
            seconds = time.monotonic() - began_s
            self._meters.count(scope["path"], status=status, seconds=seconds)

    def _may_enter(self, scope: Scope) -> bool:
        path = scope["path"]
        if self._expected is None or path in _OPEN or path.startswith("/page/"):
            return True
        given = Headers(scope=scope).get("authorization", "").encode("latin-1")
        scheme, _, token = given.partition(b" ")
        is_right = hmac.compare_digest(token.lstrip(b" "), self._expected)
        return is_right and scheme.lower() == b"bearer"  # of any case: RFC 9110, Sec. 11.1


def _no_token() -> JSONResponse:
    return RequestError(
        401,
        "the token is missing or wrong",
        remedy="send the header Authorization: Bearer TOKEN",
        headers={"WWW-Authenticate": "Bearer"},
    ).to_response()


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:  # Any: FastAPI's own type
    return {
        status: {"model": ProblemAnswer, "description": HTTPStatus(status).phrase}
        for status in statuses
    }


def _predict_body() -> dict[str, Any]:  # Any: JSON of OpenAPI
    """Both forms of the request, which the route reads by itself to bound it."""
    schema = PredictRequest.model_json_schema()
    fields = {name: of for name, of in schema["properties"].items() if name != "input"}
    file = {
        "type": "string",
        "format": "binary",
        "description": "The input: a picture, a sound, a video, or a text or class name in UTF-8.",
    }
    form = {
        "type": "object",
        "properties": {"file": file, **fields},
        "required": ["file"],
        "additionalProperties": False,
    }
    content = {"application/json": {"schema": schema}, "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}
