"""/v1: images to rows, as fer-infer writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fer_runtime.detectors import DETECTORS, MOST_MIN_FACE
from fer_runtime.output.rows import JsonLines
from fer_runtime.server.bodies import Body, BodyBudget
from fer_runtime.server.errors import RequestError
from fer_runtime.server.recognition import Recognition, RequestOptions
from fer_runtime.text import printable

_LONGEST_NAME = 60  # characters of an option in an error


class ImagesApi:
    """Handlers of /v1."""

    def __init__(self, recognition: Recognition, budget: BodyBudget) -> None:
        self._recognition = recognition
        self._budget = budget

    async def images(self, request: Request) -> Response:
        """POST /v1/images: the faces of images."""
        return await self._recognize(request, _given(request.query_params, IMAGE_OPTIONS))

    async def crops(self, request: Request) -> Response:
        """POST /v1/crops: images that are faces, taken whole."""
        return await self._recognize(request, _given(request.query_params, CROP_OPTIONS) | {"detector": "whole"})

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        _given(request.query_params, {})
        models = self._recognition.models
        return JSONResponse({"default": models.default, "models": [model.describe() for model in models]})

    async def _recognize(self, request: Request, given: dict[str, Any]) -> Response:
        model = self._recognition.models.get(given.get("model"))
        options = RequestOptions(
            model=model,
            search=model.search(given.get("detector"), given.get("min_face")),
            min_confidence=given.get("min_confidence"),
        )
        facts = request.scope["fer"]
        body = Body(request, self._budget)
        facts["body"] = "reading"
        try:
            uploads = await body.read_images()
            del facts["body"]
            rows = await self._recognition.recognize(uploads, options)
        finally:
            body.release()
        facts["images"] = len(rows)
        facts["faces"] = sum(len(row.faces) for row in rows)
        text = JsonLines()
        # A row here has the bytes of fer-infer's.
        listed = ", ".join(text.row(row).rstrip("\n") for row in rows)
        head = json.dumps({"model": model.name, "precision": model.metadata.precision, "sha256": model.sha256})
        if all(row.error is not None for row in rows):
            self._recognition.metrics.refused.labels("unreadable").inc()
            reason = f"image {rows[0].error}" if len(rows) == 1 else "none of the images can be read"
            head = f'{{"error": {json.dumps(reason)}, {head[1:]}'
            status = 422
        else:
            status = 200
        return Response(f'{head[:-1]}, "images": [{listed}]}}', status, media_type="application/json")


def _choice(*values: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in values:
            raise ValueError(f"one of {', '.join(values)}")
        return text

    return parse


def _pixels(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= MOST_MIN_FACE:
        raise ValueError(f"a whole number from 1 to {MOST_MIN_FACE}")
    return int(text)


def _confidence(text: str) -> float | str:
    if text == "auto":
        return text
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError("a number from 0 to 1, or auto")
    return value


def _name(text: str) -> str:
    return text


CROP_OPTIONS: dict[str, Callable[[str], Any]] = {"model": _name, "min_confidence": _confidence}
IMAGE_OPTIONS: dict[str, Callable[[str], Any]] = CROP_OPTIONS | {
    "detector": _choice("auto", *DETECTORS),
    "min_face": _pixels,
}


def _given(query: QueryParams, known: dict[str, Callable[[str], Any]]) -> dict[str, Any]:
    """The options of an address.

    Raises:
        RequestError: one is unknown, given twice, or out of its range.
    """
    values = {}
    for name, text in query.multi_items():
        if name not in known:
            raise RequestError(
                400,
                "options",
                f"no such option: {printable(name, limit=_LONGEST_NAME)}; this address takes "
                f"{', '.join(known) or 'none'} (as in ?model=v3)",
            )
        if name in values:
            raise RequestError(400, "options", f"{name} is given twice")
        try:
            values[name] = known[name](text)
        except ValueError as error:
            raise RequestError(400, "options", f"{name} must be {error}") from error
    return values
