"""/openapi.json: the endpoints, their options and answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fer_runtime import __version__
from fer_runtime.detectors import DETECTORS
from fer_runtime.server.settings import ServerSettings

_SCHEMA = Path(__file__).parents[1] / "schema" / "image.schema.json"
_ERRORS = {
    "400": "The request is malformed, or an option is unknown or out of its range.",
    "401": "The token is missing or wrong.",
    "403": "The request comes from another site's page.",
    "404": "There is no such address or model.",
    "408": "The request did not arrive in time.",
    "413": "The body is too long, or has too many parts.",
    "415": "The content type is not accepted.",
    "421": "The service answers on the loopback address only, and Host names another.",
    "422": "No image can be read, or a detector's file or the model's threshold is missing.",
    "503": "Too many requests are in progress, or there was no answer in time; Retry-After says when to try again.",
}


_INFERENCE = {
    "required": True,
    "description": "A request of the Open Inference Protocol with the input faces, UINT8; as JSON, or with its tensor "
    "after the JSON (Inference-Header-Content-Length).",
    "content": {"application/json": {"schema": {"type": "object"}}, "application/octet-stream": {}},
}


def describe_api(settings: ServerSettings) -> dict[str, Any]:
    """The service in OpenAPI 3.1."""
    row = json.loads(_SCHEMA.read_text(encoding="utf-8"))
    definitions = row.pop("$defs", {})
    for name in ("$schema", "$id"):
        row.pop(name, None)
    schemas = _with_references({"row": row, **definitions})
    schemas |= {
        "error": _object({"error": {"type": "string"}}, "error"),
        "rows": _object(
            {
                "model": {"type": "string"},
                "precision": {"type": "string"},
                "sha256": {"type": "string", "description": "Of the model's file."},
                "images": {"type": "array", "items": {"$ref": "#/components/schemas/row"}},
            },
            *("model", "precision", "images"),
        ),
        "models": _object(
            {"default": {"type": ["string", "null"]}, "models": {"type": "array", "items": {"type": "object"}}},
            *("default", "models"),
        ),
        "ready": _object({"ready": {"type": "boolean"}, "models": {"type": "object"}}, "ready", "models"),
        "live": _object({"live": {"type": "boolean"}}, "live"),
        "object": {"type": "object"},
        "list": {"type": "array", "items": {"type": "object"}},
    }
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "fer-serve",
            "version": __version__,
            "description": "Facial expressions in images. The models name the expression that people would see in a "
            "face; they say nothing about what somebody feels.",
        },
        "paths": _paths(settings),
        "components": {"schemas": schemas},
    }
    if settings.token is not None:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _paths(settings: ServerSettings) -> dict[str, Any]:
    crop_options = [
        _option("model", {"type": "string"}, "Name of a served model; the first one by default."),
        _option(
            "min_confidence",
            {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"const": "auto"}]},
            "Mark faces below this confidence as uncertain; auto takes the threshold fitted at export.",
        ),
    ]
    image_options = [
        *crop_options,
        _option("detector", {"enum": ["auto", *DETECTORS]}, "How faces are found."),
        _option("min_face", {"type": "integer", "minimum": 1}, "Smallest face in pixels."),
    ]
    body = {
        "required": True,
        "description": f"At most {settings.max_body} bytes, and {settings.max_pixels} pixels an image.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "additionalProperties": {"type": "string", "contentMediaType": "application/octet-stream"},
                }
            },
            "image/*": {},
            "application/octet-stream": {},
        },
    }
    return {
        "/v1/images": {"post": _operation("Find and classify the faces of images.", "rows", image_options, body)},
        "/v1/crops": {"post": _operation("Classify images that are faces.", "rows", crop_options, body)},
        "/v1/models": {"get": _operation("The models that are served.", "models")},
        "/health/live": {"get": _operation("Whether the process answers.", "live")},
        "/health/ready": {"get": _operation("The self-test of every served model.", "ready")},
        "/v2": {"get": _operation("The Open Inference Protocol: name, version, extensions.", "object")},
        "/v2/health/live": {"get": _operation("As /health/live.", "live")},
        "/v2/health/ready": {"get": _operation("As /health/ready.", "ready")},
        "/v2/repository/index": {"post": _operation("Triton's list of models.", "list")},
        **{
            f"/v2/models/{{name}}{version}{suffix}": {
                "parameters": [_in_path("name"), *([_in_path("version")] if version else [])],
                **operation,
            }
            for version in ("", "/versions/{version}")
            for suffix, operation in (
                ("", {"get": _operation("Inputs and outputs of a model.", "object")}),
                ("/ready", {"get": _operation("The model's self-test.", "object")}),
                ("/infer", {"post": _operation("Logits and probabilities of faces.", "object", body=_INFERENCE)}),
            )
        },
        "/metrics": {
            "get": {
                "summary": "Prometheus metrics.",
                "responses": {"200": {"description": "Text.", "content": {"text/plain": {}}}},
            }
        },
        "/openapi.json": {"get": _operation("This document.", "object")},
    }


def _operation(
    summary: str, schema: str, options: list[dict[str, Any]] | None = None, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    def answer(description: str, name: str) -> dict[str, Any]:
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
        return {"description": description, "content": content}

    errors = {status: answer(text, "error") for status, text in _ERRORS.items() if body is not None or status == "401"}
    operation: dict[str, Any] = {"summary": summary, "responses": {"200": answer("The result.", schema), **errors}}
    if options:
        operation["parameters"] = options
    if body is not None:
        operation["requestBody"] = body
    return operation


def _in_path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _option(name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": text}


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


def _with_references(value: Any) -> Any:
    """The schema with its references to `$defs` pointing to `components`."""
    if isinstance(value, dict):
        return {
            key: part.replace("#/$defs/", "#/components/schemas/")
            if key == "$ref" and isinstance(part, str)
            else _with_references(part)
            for key, part in value.items()
        }
    return [_with_references(part) for part in value] if isinstance(value, list) else value
