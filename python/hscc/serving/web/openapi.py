"""What ``/openapi.json`` says of the routes."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

from ... import _version
from ..signature import DTYPES
from .datatypes import MAX_DIMENSIONS, MAX_ELEMENTS

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string", "description": "One sentence: what was given, what is expected."}},
}
PARAMETERS = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
NAME = {"type": "string", "minLength": 1, "maxLength": 256}
SIZE = {"type": "integer", "minimum": 1, "maximum": MAX_ELEMENTS}
INPUT = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "additionalProperties": False,
    "properties": {
        "name": NAME,
        "shape": {"type": "array", "items": SIZE, "minItems": 1, "maxItems": MAX_DIMENSIONS},
        "datatype": {"enum": [*DTYPES]},
        "parameters": PARAMETERS,
        "data": {"type": "array", "description": "Row by row, flat or nested as the shape is."},
    },
}
OUTPUT = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {"name": NAME, "parameters": PARAMETERS},
}
REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "additionalProperties": False,
    "properties": {
        "id": {"type": "string", "maxLength": 256},
        "parameters": PARAMETERS,
        "inputs": {"type": "array", "items": INPUT, "minItems": 1},
        "outputs": {"type": "array", "items": OUTPUT},
        **{key: {"description": "Not heeded: the path says which."} for key in ("model_name", "model_version")},
    },
}
MODEL = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
BINARY = {"type": "string", "format": "binary"}


GET = {
    "/v2": ("The server's name, version and extensions, and the models' names.", (401,)),
    "/v2/health/live": ("Whether the process can answer; 503 asks for a restart.", (503,)),
    "/v2/health/ready": ("Whether all models are loaded and warm.", (503,)),
    "/metrics": ("For Prometheus.", (401,)),
}
GET_MODEL = {
    "": ("A model's inputs and outputs, its classes and the digest of its file.", (401, 404)),
    "/ready": ("Whether a model is loaded and warm.", (401, 404, 503)),
}


def document(kinds: Sequence[str]) -> dict:
    """The document; ``kinds`` are content types of files that are read."""
    paths = {path: {"get": _get(*about)} for path, about in GET.items()}
    for path in MODEL:
        names = [part.strip("{}") for part in path.split("/") if part.startswith("{")]
        given = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
        for end, about in GET_MODEL.items():
            paths[path + end] = {"parameters": given, "get": _get(*about)}
        paths[f"{path}/infer"] = {"parameters": given, "post": _infer(kinds)}
    schemes = {"bearer": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "hscc", "version": _version.__version__},
        "paths": paths,
        "components": {"securitySchemes": schemes},
        "security": [{}, {"bearer": []}],
    }


def _get(text: str, statuses: Sequence[int]) -> dict:
    kind = "text/plain" if "Prometheus" in text else "application/json"
    found = {"description": "Found.", "content": {kind: {"schema": {}}}}
    return {"summary": text, "responses": {"200": found, **_errors(statuses)}}


def _errors(statuses: Sequence[int]) -> dict[str, dict]:
    """503 of health routes says only what is not so."""
    return {
        str(status): {
            "description": HTTPStatus(status).phrase,
            "content": {"application/json": {"schema": {"type": "object"} if status == 503 else ERROR}},
        }
        for status in statuses
    }


def _infer(kinds: Sequence[str]) -> dict:
    binary = {kind: {"schema": BINARY} for kind in ("application/octet-stream", *kinds)}
    answer = {"schema": {"type": "object", "required": ["model_name", "outputs"]}}
    found = {"application/json": answer, "application/octet-stream": {"schema": BINARY}}
    return {
        "summary": "A model's answer to tensors (JSON, or JSON and binary data), or to one file.",
        "requestBody": {"required": True, "content": {"application/json": {"schema": REQUEST}, **binary}},
        "responses": {
            "200": {"description": "The outputs.", "content": found},
            **_errors((400, 401, 404, 408, 413, 415, 422, 429, 500, 503, 504)),
        },
    }
