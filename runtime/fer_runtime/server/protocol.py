"""/v2: the Open Inference Protocol, which the clients of KServe and Triton speak, with binary tensors.

https://github.com/kserve/open-inference-protocol; the extension is Triton's "binary tensor data".
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fer_runtime import __version__
from fer_runtime.images import Uint8Array
from fer_runtime.server.bodies import Body, BodyBudget
from fer_runtime.server.errors import RequestError
from fer_runtime.server.models import ServedModel
from fer_runtime.server.recognition import Recognition

MAX_FACES = 4096  # of a request
MAX_JSON_BYTES = 4 << 20  # pixels as text are four times as long, and slow
_INPUT = "faces"
HEADER = "Inference-Header-Content-Length"
_VERSION = "1"  # a file has no older ones beside it


@dataclass(frozen=True, slots=True, kw_only=True)
class _Output:
    name: str
    is_binary: bool


@dataclass(slots=True, kw_only=True)
class Plan:
    """What the JSON of a request asks for, checked; the same text asks for the same."""

    shape: tuple[int, ...]
    pixels: Uint8Array | None  # None: they are behind the JSON
    outputs: list[_Output]
    id: str | None
    head: bytes | None = None  # JSON of the answer where all of its tensors are binary, after the first one

    def faces(self, tensors: bytes, start: int = 0) -> Uint8Array:
        """The faces of a request with these bytes, whose tensors begin at `start`.

        Raises:
            RequestError: there are too few or too many.
        """
        if self.pixels is not None:
            if len(tensors) != start:
                raise _refused("there are bytes behind the JSON, but the input has no binary_data_size")
            return self.pixels
        count = math.prod(self.shape)
        if len(tensors) - start != count:
            raise _refused(
                f"the shape needs {count} bytes behind the JSON and in binary_data_size, not {len(tensors) - start}"
            )
        faces: Uint8Array = np.frombuffer(tensors, np.uint8, count, start).reshape(self.shape)
        return faces


class InferenceProtocol:
    """Handlers of /v2."""

    def __init__(self, recognition: Recognition, budget: BodyBudget) -> None:
        self._recognition = recognition
        self._budget = budget

    async def server(self, request: Request) -> Response:
        """GET /v2."""
        return JSONResponse({"name": "fer-serve", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def index(self, request: Request) -> Response:
        """POST /v2/repository/index, Triton's list of models."""
        models = self._recognition.models
        return JSONResponse([{"name": model.name, "version": _VERSION, "state": "READY"} for model in models])

    async def model(self, request: Request) -> Response:
        """GET /v2/models/NAME."""
        model = self._model(request)
        classes = len(model.labels)
        return JSONResponse(
            {
                "name": model.name,
                "versions": [_VERSION],
                "platform": "onnxruntime_onnx",
                "inputs": [{"name": _INPUT, "datatype": "UINT8", "shape": [-1, *model.face_shape]}],
                "outputs": [
                    {"name": name, "datatype": "FP32", "shape": [-1] if name == "unfamiliarity" else [-1, classes]}
                    for name in model.outputs
                ],
                "parameters": {"labels": ",".join(model.labels), "sha256": model.sha256},
            }
        )

    async def model_ready(self, request: Request) -> Response:
        """GET /v2/models/NAME/ready: its self-test."""
        model = self._model(request)
        ready = not await model.checked(self._recognition.computers)
        return JSONResponse({"name": model.name, "ready": ready}, 200 if ready else 503)

    async def infer(self, request: Request) -> Response:
        """POST /v2/models/NAME/infer."""
        model = self._model(request)
        facts = request.scope["fer"]
        facts["body"] = "reading"
        body = Body(request, self._budget)
        try:
            length = request.headers.get(HEADER)
            content = await body.read(limit=MAX_JSON_BYTES if length is None else None)
            del facts["body"]
            plan, start = _parse(content, length, model)
            faces = plan.faces(content, start)
            answers = await self._recognition.classify(model, faces)
        finally:
            body.release()
        facts["faces"] = len(faces)
        self._recognition.metrics.inferences.labels(model.name).inc(len(faces))
        head, tensors = answer(plan, answers, model)
        if not tensors:
            return Response(head, media_type="application/json")
        return Response(
            b"".join([head, *tensors]), media_type="application/octet-stream", headers={HEADER: str(len(head))}
        )

    def _model(self, request: Request) -> ServedModel:
        if request.path_params.get("version", _VERSION) != _VERSION:
            raise RequestError(404, "model", f"a model has the version {_VERSION} only")
        return self._recognition.models.get(request.path_params["name"])


def _refused(message: str) -> RequestError:
    return RequestError(400, "inference", message)


def _parse(content: bytes, length: str | None, model: ServedModel) -> tuple[Plan, int]:
    """What a request for inference asks for, and where its tensors begin.

    Raises:
        RequestError: it is malformed, or its faces are not those that the model takes.
    """
    if length is None:
        return parse_plan(content, model), len(content)
    if not length.isascii() or not length.isdigit() or int(length[:12]) > min(len(content), MAX_JSON_BYTES):
        raise _refused(f"{HEADER} must be the length of the JSON in front of the tensors")
    return parse_plan(content[: int(length)], model), int(length)


def parse_plan(head: bytes, model: ServedModel) -> Plan:
    """What the JSON of a request asks for.

    Raises:
        RequestError: it is malformed, or its faces are not those that the model takes.
    """
    try:
        values = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise _refused("the request is no JSON") from error
    if not isinstance(values, dict):
        raise _refused("the request is no JSON object")
    (given,) = _objects(values, "inputs", exactly=1)
    if given.get("name") != _INPUT or given.get("datatype") != "UINT8":
        raise _refused(f"the input must be named {_INPUT} and have the datatype UINT8")
    shape, pixels = _pixels(given, model)
    binary_default = _parameters(values).get("binary_data_output", False)
    outputs = []
    for wanted in _objects(values, "outputs") if "outputs" in values else [{"name": name} for name in model.outputs]:
        parameters = _parameters(wanted)
        # A tuple, not a set: the name may be a list, which has no hash.
        if wanted.get("name") not in model.outputs:
            raise _refused(f"the model's outputs are {', '.join(model.outputs)}")
        if set(parameters) - {"binary_data"}:
            raise _refused("an output takes the parameter binary_data only")
        outputs.append(_Output(name=wanted["name"], is_binary=bool(parameters.get("binary_data", binary_default))))
    if len({output.name for output in outputs}) < len(outputs):
        raise _refused("an output is asked for twice")
    identity = values.get("id")
    if identity is not None and (not isinstance(identity, str) or len(identity) > 200):
        raise _refused("id must be a text of at most 200 characters")
    return Plan(shape=shape, pixels=pixels, outputs=outputs, id=identity)


def _pixels(given: dict[str, Any], model: ServedModel) -> tuple[tuple[int, ...], Uint8Array | None]:
    """The shape of the faces, and the faces unless they are behind the JSON."""
    shape: Any = given.get("shape")
    wanted = ", ".join(map(str, ("faces", *model.face_shape)))
    is_shape = isinstance(shape, list) and all(type(size) is int for size in shape)
    if not is_shape or tuple(shape[1:]) != model.face_shape or not 1 <= shape[0] <= MAX_FACES:
        raise _refused(f"the shape must be [{wanted}] with 1 to {MAX_FACES} faces")
    count = math.prod(shape)
    size = _parameters(given).get("binary_data_size")
    if size is not None:
        if size != count:
            raise _refused(f"the shape needs {count} bytes behind the JSON and in binary_data_size")
        return tuple(shape), None
    try:
        data = np.asarray(given.get("data"))
    except (ValueError, OverflowError) as error:  # lists of different lengths, or too deep
        raise _refused("data must be the pixels in the order of the shape, nested or flat") from error
    if data.size != count or data.dtype.kind not in "iu" or data.min() < 0 or data.max() > 255:
        raise _refused(f"data must be {count} whole numbers from 0 to 255")
    return tuple(shape), np.ascontiguousarray(data.reshape(shape), np.uint8)


def answer(plan: Plan, answers: dict[str, Any], model: ServedModel) -> tuple[bytes, list[bytes]]:
    """The JSON of the answer, and its tensors in binary form."""
    if plan.head is not None:
        return plan.head, [_little_endian(answers[output.name]) for output in plan.outputs]
    described, tensors = [], []
    for output in plan.outputs:
        values = answers[output.name]
        entry: dict[str, Any] = {"name": output.name, "datatype": "FP32", "shape": list(values.shape)}
        if output.is_binary:
            content = _little_endian(values)
            entry["parameters"] = {"binary_data_size": len(content)}
            tensors.append(content)
        else:
            entry["data"] = values.reshape(-1).tolist()
        described.append(entry)
    head: dict[str, Any] = {"model_name": model.name, "model_version": _VERSION, "outputs": described}
    if plan.id is not None:
        head["id"] = plan.id
    text = json.dumps(head).encode()
    if len(tensors) == len(plan.outputs):
        plan.head = text
    return text, tensors


def _little_endian(values: Any) -> bytes:
    """A tensor as the extension says."""
    return np.ascontiguousarray(values, "<f4").tobytes()


def _objects(values: dict[str, Any], key: str, *, exactly: int | None = None) -> list[dict[str, Any]]:
    listed = values.get(key)
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed) or len(listed) > 100:
        raise _refused(f"{key} must be a list of objects")
    if exactly is not None and len(listed) != exactly:
        raise _refused(f"there must be {exactly} of {key}: {_INPUT}")
    return listed


def _parameters(values: dict[str, Any]) -> dict[str, Any]:
    parameters = values.get("parameters", {})
    if not isinstance(parameters, dict):
        raise _refused("parameters must be an object")
    return parameters
