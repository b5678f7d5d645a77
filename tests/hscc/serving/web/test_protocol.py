"""Bodies of the Open Inference Protocol <-> tensors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hscc.serving.errors import BadRequest, Failed, Refused
from hscc.serving.signature import DTYPES
from hscc.serving.web import datatypes
from hscc.serving.web.limits import WebLimits
from hscc.serving.web.protocol import InferRequest, chosen, decode, encode
from hscc.serving.web.refusals import TooLarge, told

LIMITS = WebLimits(json=4096, tensors=3)


def body(*entries: dict, raw: bytes = b"", **more) -> tuple[bytes, str | None]:
    """(body, its header) with these inputs."""
    text = json.dumps({"inputs": [*entries], **more}).encode()
    return text + raw, str(len(text)) if raw else None


def tensor(**more) -> dict:
    return {"name": "a", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4.5]} | more


@pytest.mark.parametrize("datatype", DTYPES)
def test_every_datatype_in_json_and_in_bytes(datatype: str) -> None:
    x = torch.tensor([[1, 0, 1], [0, 1, 1]]).to(DTYPES[datatype])
    nested = decode(*body(tensor(datatype=datatype, shape=[2, 3], data=x.tolist())), LIMITS)
    flat = decode(*body(tensor(datatype=datatype, shape=[2, 3], data=x.flatten().tolist())), LIMITS)
    raw = datatypes.to_bytes(x)
    entry = {"name": "a", "datatype": datatype, "shape": [2, 3], "parameters": {"binary_data_size": len(raw)}}
    binary = decode(*body(entry, raw=raw), LIMITS)
    for request in (nested, flat, binary):
        assert request.inputs["a"].dtype == x.dtype
        assert torch.equal(request.inputs["a"], x)
    for wanted in (True, False):
        content, length = encode({"model_name": "m"}, {"b": (x, wanted)})
        head = json.loads(content[:length])
        (found,) = head["outputs"]
        assert (found["name"], found["datatype"], found["shape"]) == ("b", datatype, [2, 3])
        if wanted:
            assert content[length:] == raw
            assert found["parameters"] == {"binary_data_size": len(raw)}
        else:
            assert found["data"] == x.flatten().tolist()


def test_bytes_are_little_endian_row_by_row() -> None:
    x = np.arange(6, dtype="<i4").reshape(2, 3)
    found = datatypes.from_bytes(x.tobytes(), "INT32", (2, 3), "a")
    assert found.tolist() == x.tolist()
    assert datatypes.to_bytes(found.T) == x.T.tobytes()


def test_several_tensors_some_as_bytes_and_outputs_asked_for() -> None:
    raw = [np.arange(3, dtype=np.int64).tobytes(), np.float32([7]).tobytes()]
    first = {"name": "x", "datatype": "INT64", "shape": [3], "parameters": {"binary_data_size": 24}}
    last = {"name": "z", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
    outputs = [{"name": "p", "parameters": {"binary_data": False}}, {"name": "q"}]
    given = body(first, tensor(), last, raw=b"".join(raw), id="me", outputs=outputs, parameters={
        "binary_data_output": True, "timeout": 2_500_000, "other": "text"
    })  # fmt: skip
    request = decode(*given, LIMITS)
    assert [*request.inputs] == ["x", "a", "z"]
    assert request.inputs["x"].tolist() == [0, 1, 2]
    assert request.inputs["z"].tolist() == [7]
    assert (request.id, request.wanted, request.binary, request.deadline) == ("me", {"p": False, "q": True}, True, 2.5)


def test_outputs_in_the_order_asked_for() -> None:
    outputs = {"p": torch.zeros(1), "q": torch.ones(1)}
    assert [*chosen(InferRequest({}), outputs)] == ["p", "q"]
    assert [*chosen(InferRequest({}, wanted={"q": True}), outputs)] == ["q"]
    with pytest.raises(BadRequest, match="'r', expected one of"):
        chosen(InferRequest({}, wanted={"r": True}), outputs)
    with pytest.raises(Failed, match="NaN or inf"):
        chosen(InferRequest({}), {"p": torch.tensor([float("nan")])})


BAD = {
    "no JSON": (b"{", None, "no JSON"),
    "no text": (b"\xff\xfe{}", None, "no JSON"),
    "empty": (b"", None, "no JSON"),
    "deep nesting": (b"[" * 4000, None, "no JSON"),
    "a list": (b"[]", None, "no object"),
    "no inputs": (b"{}", None, "got none"),
    "inputs no list": (b'{"inputs": {}}', None, "no list"),
    "an input of text": (b'{"inputs": ["a"]}', None, "no object"),
    "an unknown key": (*body(tensor(), ouputs=[]), "unknown keys"),
    "a key twice": (b'{"inputs": [], "inputs": []}', None, "twice"),
    "a tensor twice": (*body(tensor(), tensor()), "'a' twice"),
    "too many tensors": (*body(*[tensor(name=str(i)) for i in range(4)]), "at most 3"),
    "a million outputs": (*body(tensor(), outputs=[{"name": "o"}] * 100), "at most 3"),
    "an output twice": (*body(tensor(), outputs=[{"name": "o"}] * 2), "twice"),
    "no name": (*body(tensor(name="")), "no name"),
    "a name of lines": (*body(tensor(name="a\nb")), "no name"),
    "a long name": (*body(tensor(name="a" * 300)), "no name"),
    "an id of numbers": (*body(tensor(), id=3), "no id"),
    "unknown datatype": (*body(tensor(datatype="FP31")), "no known datatype"),
    "bytes": (*body(tensor(datatype="BYTES")), "no known datatype"),
    "datatype of lists": (*body(tensor(datatype=[])), "no known datatype"),
    "no shape": (*body({k: v for k, v in tensor().items() if k != "shape"}), "no shape"),
    "a shape of text": (*body(tensor(shape="22")), "no shape"),
    "nine dimensions": (*body(tensor(shape=[1] * 9)), "too many dimensions"),
    "negative shape": (*body(tensor(shape=[-2, -2])), "out of range"),
    "zero shape": (*body(tensor(shape=[0, 2], data=[])), "out of range"),
    "boolean shape": (*body(tensor(shape=[True, 4])), "out of range"),
    "float shape": (*body(tensor(shape=[2.0, 2])), "out of range"),
    "overflow to 4": (*body(tensor(shape=[2**32 + 2, 2])), "out of range"),
    "overflow of the product": (*body(tensor(shape=[2**31 - 1] * 8)), "out of range"),
    "huge shape": (*body(tensor(shape=[2**200])), "out of range"),
    "fewer values": (*body(tensor(data=[1, 2, 3])), "got 3 values, expected 4"),
    "other nesting": (*body(tensor(data=[[1, 2, 3], [4]])), "nested otherwise"),
    "nesting half done": (*body(tensor(data=[[1, 2], 3, 4])), "nested otherwise"),
    "deeper nesting": (*body(tensor(data=[[[1], [2]], [[3], [4]]])), "another kind"),
    "text as numbers": (*body(tensor(data=["1", "2", "3", "4"])), "another kind"),
    "booleans as numbers": (*body(tensor(data=[True, 2, 3, 4])), "another kind"),
    "null": (*body(tensor(data=None)), "no list"),
    "floats as integers": (*body(tensor(datatype="INT32")), "another kind"),
    "a large integer": (*body(tensor(datatype="UINT8", data=[1, 2, 3, 256])), "out of range"),
    "a negative one": (*body(tensor(datatype="UINT8", data=[1, 2, 3, -1])), "out of range"),
    "a huge integer as float": (*body(tensor(data=[10**400, 2, 3, 4])), "out of range"),
    "NaN": (b'{"inputs": [{"data": [NaN]}]}', None, "got NaN"),
    "infinity": (b'{"inputs": [{"data": [-Infinity]}]}', None, "got -Infinity"),
    "data and bytes": (*body(tensor(parameters={"binary_data_size": 16}), raw=b"0" * 16), "both"),
    "neither": (*body({k: v for k, v in tensor().items() if k != "data"}), "neither"),
    "shared memory": (*body(tensor(parameters={"shared_memory_region": "r"})), "shared_memory_region"),
    "classification": (*body(tensor(), outputs=[{"name": "o", "parameters": {"classification": 2}}]), "classification"),
    "parameters of objects": (*body(tensor(), parameters={"a": {}}), "other parameters"),
    "a flag of text": (*body(tensor(), parameters={"binary_data_output": "yes"}), "true or false"),
}


@pytest.mark.parametrize(("content", "length", "words"), BAD.values(), ids=BAD)
def test_malformed(content: bytes, length: str | None, words: str) -> None:
    with pytest.raises(Refused, match=words) as caught:
        decode(content, length, LIMITS)
    status, sentence = told(caught.value)
    assert 400 <= status < 500
    assert "\n" not in sentence
    assert len(sentence) < 300


def binary(size: object, raw: bytes, shape: object = (2, 2)) -> tuple[bytes, str | None]:
    entry = {"name": "a", "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": size}}
    return body(entry, raw=raw)


BAD_BINARY = {
    "truncated": (*binary(16, b"0" * 15), "an integer up to 15"),
    "too much": (*binary(16, b"0" * 17), "got 1 bytes after"),
    "size unlike the shape": (*binary(12, b"0" * 12), "got 12 bytes, expected 16"),
    "negative size": (*binary(-16, b"0" * 16), "none"),
    "size of text": (*binary("16", b"0" * 16), "none"),
    "boolean size": (*binary(True, b"0"), "none"),
    "huge size": (*binary(2**64, b"0" * 16), "none"),
    "huge shape of few bytes": (*binary(16, b"0" * 16, [2**31 - 1]), "got 16 bytes"),
    "length beyond the body": (b"{}", "3", "no length"),
    "length of 0": (b"{}", "0", "no length"),
    "negative length": (b"{}", "-1", "no length"),
    "length of text": (b"{}", "two", "no length"),
    "length in other digits": (b"{}", "²", "no length"),
    "length of a million digits": (b"{}", "9" * 10**6, "no length"),
    "length within the JSON": (body(tensor())[0], "20", "no JSON"),
}


@pytest.mark.parametrize(("content", "length", "words"), BAD_BINARY.values(), ids=BAD_BINARY)
def test_malformed_binary(content: bytes, length: str | None, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        decode(content, length, LIMITS)


def test_bool_is_one_bit() -> None:
    with pytest.raises(BadRequest, match="0 and 1"):
        datatypes.from_bytes(b"\x02", "BOOL", (1,), "a")


def test_much_json_is_refused_before_it_is_read() -> None:
    with pytest.raises(TooLarge, match="5000 bytes of JSON"):
        decode(b"[" * 5000, None, LIMITS)


@pytest.mark.parametrize("timeout", [0, -1, 1.5, True, "1", 2**60])
def test_a_time_that_is_none(timeout: object) -> None:
    with pytest.raises(BadRequest, match="timeout"):
        InferRequest({}, parameters={"timeout": timeout}).deadline  # noqa: B018


def test_numbers_too_large_for_a_float_become_inf_which_the_engine_refuses() -> None:
    request = decode(*body(tensor(data=[1e39, 1, 2, 3])), LIMITS)
    assert request.inputs["a"].isinf().any()
