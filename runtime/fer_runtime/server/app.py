"""The application: routes, and what wraps them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Scope

from fer_runtime.server.bodies import BodyBudget
from fer_runtime.server.errors import RequestError
from fer_runtime.server.express import Express
from fer_runtime.server.guard import CLOSED, FAULT, Guard, error_response
from fer_runtime.server.images import ImagesApi
from fer_runtime.server.live import ENDLESS, LiveView
from fer_runtime.server.logs import log_exception
from fer_runtime.server.metrics import CONTENT_TYPE, Metrics
from fer_runtime.server.models import open_models
from fer_runtime.server.openapi import describe_api
from fer_runtime.server.protocol import InferenceProtocol
from fer_runtime.server.recognition import Recognition
from fer_runtime.server.settings import ServerSettings


def open_recognition(settings: ServerSettings) -> Recognition:
    """The models that the settings name, self-tested, with threads to serve them; for `create_app`.

    Raises:
        FerError: a model is missing, does not load, or fails its self-test.
    """
    return Recognition(settings, open_models(settings), Metrics())


class Application(Guard):
    """The routes behind their guard, and the short way past both that a connection may take."""

    express: Express


def create_app(
    recognition: Recognition,
    *,
    live: LiveView | None = None,
    tasks: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (),
) -> Application:
    """An ASGI application that answers with `recognition`; see docs/serve.md.

    Args:
        recognition: models, threads and limits.
        live: what /live shows.
        tasks: started with the application, and cancelled at its end.
    """
    budget = BodyBudget(recognition.settings.max_body)
    recognition.metrics.body_bytes.set_function(lambda: budget.used)
    routes = _routes(recognition, budget)
    if live is not None:
        routes += live.routes()
    starlette = Starlette(
        routes=routes, lifespan=_running_beside(tasks), exception_handlers=_exception_handlers(recognition.metrics)
    )
    starlette.router.redirect_slashes = False  # the answer would be empty, and its address the one behind a proxy
    app = Application(starlette, recognition, _route_namer(routes), ENDLESS if live is not None else frozenset())
    app.express = Express(recognition, budget, app.check)
    return app


def _routes(recognition: Recognition, budget: BodyBudget) -> list[Route]:
    images = ImagesApi(recognition, budget)
    state = _StateApi(recognition)
    protocol = InferenceProtocol(recognition, budget)
    return [
        Route("/v1/images", images.images, methods=["POST"]),
        Route("/v1/crops", images.crops, methods=["POST"]),
        Route("/v1/models", images.models, methods=["GET"]),
        Route("/health/live", state.live, methods=["GET"]),
        Route("/health/ready", state.ready, methods=["GET"]),
        Route("/metrics", state.metrics, methods=["GET"]),
        Route("/openapi.json", state.openapi, methods=["GET"]),
        Route("/v2", protocol.server, methods=["GET"]),
        Route("/v2/health/live", state.live, methods=["GET"]),
        Route("/v2/health/ready", state.ready, methods=["GET"]),
        Route("/v2/repository/index", protocol.index, methods=["POST"]),
        *(
            Route(f"/v2/models/{{name}}{version}{suffix}", handler, methods=[method])
            for version in ("", "/versions/{version}")
            for suffix, handler, method in (
                ("", protocol.model, "GET"),
                ("/ready", protocol.model_ready, "GET"),
                ("/infer", protocol.infer, "POST"),
            )
        ),
    ]


class _StateApi:
    """The endpoints about the service itself: health, metrics and the OpenAPI description."""

    def __init__(self, recognition: Recognition) -> None:
        self._recognition = recognition

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        """The self-test of every model that is served."""
        passed = {}
        for model in self._recognition.models:
            failed = await model.checked(self._recognition.computers)
            self._recognition.metrics.self_tests.labels(model.name, "failed" if failed else "passed").inc()
            passed[model.name] = {"passed": not failed, "failed_checks": failed}
        ready = bool(passed) and all(outcome["passed"] for outcome in passed.values())
        return JSONResponse({"ready": ready, "models": passed}, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        return Response(self._recognition.metrics.to_text(), headers={"Content-Type": CONTENT_TYPE})

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(describe_api(self._recognition.settings))


def _exception_handlers(metrics: Metrics) -> dict[Any, Callable[[Request, Exception], Awaitable[Response]]]:
    """The answers to requests that fail, by the class of the exception."""

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        metrics.refused.labels(error.reason).inc()
        return error_response(error)

    async def refuse_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        reasons = {404: "no such address; GET /openapi.json lists them", 405: "the address does not take this method"}
        metrics.refused.labels("address").inc()
        message = reasons.get(error.status_code, error.detail)
        return JSONResponse({"error": message}, error.status_code, headers=error.headers)

    async def note_closed(request: Request, error: Exception) -> Response:
        # Nobody reads the answer, but a 500 would count the client's fault as the server's.
        request.scope["fer"].setdefault("closed", CLOSED)
        return Response(status_code=CLOSED)

    async def fail(request: Request, error: Exception) -> Response:
        # A fault of ours; starlette raises it again, and the guard logs it.
        return JSONResponse({"error": FAULT}, 500)

    return {RequestError: refuse, HTTPException: refuse_route, ClientDisconnect: note_closed, Exception: fail}


def _running_beside(
    tasks: Sequence[Callable[[], Coroutine[Any, Any, None]]],
) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    """The application's lifespan, for which the tasks run."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        running = [asyncio.ensure_future(task()) for task in tasks]
        for future in running:
            future.add_done_callback(_note_end)
        yield
        for future in running:
            future.cancel()

    return lifespan


def _route_namer(routes: Sequence[Route]) -> Callable[[Scope], str]:
    """A function that gives the template of the route that answered, for the metrics."""
    # Of the addresses of one handler, the first.
    templates = {route.endpoint: route.path for route in reversed(routes)}

    def route_of(scope: Scope) -> str:
        # Not the path itself: anybody could fill the metrics with names.
        endpoint = scope.get("endpoint")
        return "other" if endpoint is None else templates.get(endpoint, "other")

    return route_of


def _note_end(task: asyncio.Future[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log_exception(error)
