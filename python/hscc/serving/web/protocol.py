"""The Open Inference Protocol, version 2, over HTTP, with its binary tensor data extension: bytes <-> tensors.

A body is JSON, or JSON followed by the tensors' bytes; then the header ``Inference-Header-Content-Length`` says how
long the JSON is. Nothing here knows of a model or a network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..errors import BadRequest, Failed
from ..signature import DATATYPES, DTYPES, finite
from . import datatypes
from .limits import WebLimits
from .refusals import TooLarge

JSON_LENGTH = "inference-header-content-length"
EXTENSIONS = ("binary_tensor_data",)
KEYS = {"id", "parameters", "inputs", "outputs", "model_name", "model_version"}  # KServe's client adds the last two
MAX_TEXT = 256  # characters of a name or an id


@dataclass(frozen=True)
class InferRequest:
    """What a client asks: inputs by name, and which outputs it wants, True as binary; all of them where None."""

    inputs: dict[str, Tensor]
    id: str = ""
    wanted: dict[str, bool] | None = None
    binary: bool = False
    parameters: Mapping[str, object] = field(default_factory=dict)

    @property
    def deadline(self) -> float | None:
        """Seconds that the client will wait, from the parameter ``timeout`` in microseconds; None without one."""
        timeout = self.parameters.get("timeout")
        if timeout is None:
            return None
        if type(timeout) is not int or not 0 < timeout < 2**53:
            raise BadRequest("timeout: got no time, expected an integer of microseconds above 0")
        return timeout / 1e6


def decode(body: bytes | bytearray | memoryview, json_length: str | None, limits: WebLimits) -> InferRequest:
    """A request from its body and its header ``Inference-Header-Content-Length``, None where it has none.

    Raises:
        BadRequest, TooLarge: for anything that is not as the protocol has it; one sentence says what.
    """
    body = memoryview(body)
    length = len(body) if json_length is None else _length(json_length, len(body))
    if length > limits.json:
        raise TooLarge(f"body: got {length} bytes of JSON, expected at most {limits.json}; send tensors as binary data")
    head = _object(_parse(body[:length]), "request", KEYS)
    parameters = _parameters(head, "request")
    inputs, rest = {}, body[length:]
    for entry in _entries(head, "inputs", limits.tensors):
        name, tensor, rest = _input(entry, rest)
        if name in inputs:
            raise BadRequest(f"inputs: got {name!r} twice, expected every name once")
        inputs[name] = tensor
    if not inputs:
        raise BadRequest("inputs: got none, expected at least one tensor")
    if len(rest):
        raise BadRequest(f"body: got {len(rest)} bytes after the last tensor, expected none")
    binary = _flag(parameters, "binary_data_output", False)
    wanted: dict[str, bool] = {}
    for entry in _entries(head, "outputs", limits.tensors):
        _object(entry, "output", {"name", "parameters"})
        name, own = _text(entry, "name", "output"), _parameters(entry, "output")
        if name in wanted:
            raise BadRequest(f"outputs: got {name!r} twice, expected every name once")
        refuse(own, f"output {name!r}")
        wanted[name] = _flag(own, "binary_data", binary)
    identifier = _text(head, "id", "request") if "id" in head else ""
    return InferRequest(inputs, identifier, wanted or None, binary, parameters)


def chosen(request: InferRequest, outputs: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, bool]]:
    """The outputs that were asked for, in that order, each with whether it goes as binary.

    Raises BadRequest for one that the model has not, and Failed when one holds NaN or inf, which is no answer.
    """
    wanted = dict.fromkeys(outputs, request.binary) if request.wanted is None else request.wanted
    missing = next((name for name in wanted if name not in outputs), None)
    if missing is not None:
        raise BadRequest(f"outputs: got {missing!r}, expected one of {[*outputs]}")
    broken = next((name for name in wanted if not finite(outputs[name])), None)
    if broken is not None:
        raise Failed(f"output {broken!r}: got NaN or inf from the model, expected finite numbers")
    return {name: (outputs[name], binary) for name, binary in wanted.items()}


def encode(head: Mapping[str, object], outputs: Mapping[str, tuple[Tensor, bool]]) -> tuple[bytes, int | None]:
    """(body, length of its JSON, None when that is all) of an answer; ``head`` has its model's name, version and id."""
    entries, parts = [], []
    for name, (tensor, binary) in outputs.items():
        entry = {"name": name, "datatype": DATATYPES[tensor.dtype], "shape": [*tensor.shape]}
        if binary:
            parts.append(datatypes.to_bytes(tensor))
            entry["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            entry["data"] = tensor.detach().cpu().flatten().tolist()
        entries.append(entry)
    text = json.dumps({**head, "outputs": entries}, separators=(",", ":")).encode()
    return b"".join([text, *parts]), len(text) if parts else None


def refuse(parameters: Mapping[str, object], name: str) -> None:
    """Raises BadRequest for parameters that would change the answer's meaning and that are not followed here."""
    for key in parameters:
        if key == "classification" or key.startswith(("shared_memory_", "sequence_")):
            raise BadRequest(f"{name}: got the parameter {key!r}, expected none of an extension that is not offered")


def _input(entry: object, rest: memoryview) -> tuple[str, Tensor, memoryview]:
    """(name, tensor, what follows its bytes)."""
    _object(entry, "input", {"name", "shape", "datatype", "parameters", "data"})
    name = _text(entry, "name", "input")
    where, parameters = f"input {name!r}", _parameters(entry, "input")
    refuse(parameters, where)
    shape, datatype = datatypes.check_shape(entry.get("shape"), where), entry.get("datatype")
    if not isinstance(datatype, str) or datatype not in DTYPES:
        raise BadRequest(f"{where}: got no known datatype, expected one of {[*DTYPES]}")
    if ("data" in entry) == ("binary_data_size" in parameters):
        raise BadRequest(f"{where}: got both data and binary_data_size or neither, expected one of them")
    if "data" in entry:
        return name, datatypes.from_json(entry["data"], datatype, shape, where), rest
    size = parameters["binary_data_size"]
    if type(size) is not int or not 0 <= size <= len(rest):
        raise BadRequest(f"{where}: got a binary_data_size that is none, expected an integer up to {len(rest)}")
    return name, datatypes.from_bytes(rest[:size], datatype, shape, where), rest[size:]


def _length(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 16 and 0 < int(text) <= most):
        raise BadRequest(f"Inference-Header-Content-Length: got no length, expected 1 to {most}, the body's bytes")
    return int(text)


def _parse(text: memoryview) -> object:
    def constant(name: str) -> float:
        raise BadRequest(f"body: got {name}, expected finite numbers")

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise BadRequest("body: got a key twice in one object, expected every key once")
        return found

    try:
        return json.loads(bytes(text).decode(), parse_constant=constant, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        if isinstance(error, BadRequest):
            raise
        raise BadRequest("body: got no JSON, expected an object with inputs, in UTF-8") from error


def _object(value: object, name: str, keys: set[str]) -> dict[str, object]:
    if not isinstance(value, dict):
        raise BadRequest(f"{name}: got no object, expected one with {sorted(keys)}")
    if not value.keys() <= keys:
        raise BadRequest(f"{name}: got unknown keys, expected only {sorted(keys)}")
    return value


def _entries(head: Mapping[str, object], key: str, most: int) -> list:
    entries = head.get(key, [])
    if not isinstance(entries, list):
        raise BadRequest(f"{key}: got no list, expected a list of objects")
    if len(entries) > most:
        raise BadRequest(f"{key}: got {len(entries)}, expected at most {most}")
    return entries


def _text(entry: Mapping[str, object], key: str, name: str) -> str:
    text = entry.get(key)
    if not isinstance(text, str) or not text.isprintable() or len(text) > MAX_TEXT or not (text or key == "id"):
        raise BadRequest(f"{name}: got no {key}, expected printable text of at most {MAX_TEXT} characters")
    return text


def _parameters(entry: Mapping[str, object], name: str) -> dict[str, object]:
    found = entry.get("parameters", {})
    if not isinstance(found, dict) or not all(isinstance(one, str | int | float) for one in found.values()):
        raise BadRequest(f"{name}: got other parameters, expected an object of texts, numbers and booleans")
    return found


def _flag(parameters: Mapping[str, object], key: str, default: bool) -> bool:
    value = parameters.get(key, default)
    if type(value) is not bool:
        raise BadRequest(f"{key}: got another value, expected true or false")
    return value
