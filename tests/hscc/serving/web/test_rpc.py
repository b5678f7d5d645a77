"""gRPC requests that are not as the protocol has them, by bare calls."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
import torch
from hscc.serving.models import Served
from hscc.serving.web import inference_pb2 as pb
from hscc.serving.web import rpc

from .conftest import Server

X = np.zeros((1, 1, 16, 16), np.float32)


def tensor(**more) -> pb.ModelInferRequest.InferInputTensor:
    return pb.ModelInferRequest.InferInputTensor(**{"name": "input", "datatype": "FP32", "shape": X.shape} | more)


def request(*inputs, raw: list[bytes] | None = None, **more) -> pb.ModelInferRequest:
    raw = [X.tobytes()] if raw is None else raw
    return pb.ModelInferRequest(model_name="small", inputs=inputs or [tensor()], raw_input_contents=raw, **more)


@pytest.fixture(scope="module")
def infer(server: Server):
    with grpc.insecure_channel(server.rpc) as channel:
        yield channel.unary_unary(
            f"/{rpc.NAME}/ModelInfer",
            lambda one: one if isinstance(one, bytes) else one.SerializeToString(),
            pb.ModelInferResponse.FromString,
        )


def output(response: pb.ModelInferResponse) -> torch.Tensor:
    return torch.frombuffer(bytearray(response.raw_output_contents[0]), dtype=torch.float32).view(-1, 3)


def test_raw_and_typed_contents(infer, model: Served) -> None:
    x = torch.randn(2, 1, 16, 16)
    contents = pb.InferTensorContents(fp32_contents=x.flatten().tolist())
    typed = infer(request(tensor(shape=x.shape, contents=contents), raw=[]))
    raw = infer(request(tensor(shape=x.shape), raw=[x.numpy().tobytes()]))
    for response in (typed, raw):
        torch.testing.assert_close(output(response), model.module(x), rtol=1e-4, atol=1e-5)


OUTPUT = pb.ModelInferRequest.InferRequestedOutputTensor
SHARED = {"shared_memory_region": pb.InferParameter(string_param="r")}
BAD = {
    "no inputs": pb.ModelInferRequest(model_name="small"),
    "truncated": request(raw=[X.tobytes()[:-1]]),
    "too much": request(raw=[X.tobytes() + b"0"]),
    "one raw too many": request(raw=[X.tobytes()] * 2),
    "both": request(tensor(contents=pb.InferTensorContents(fp32_contents=[0.0]))),
    "neither": request(raw=[]),
    "contents of another kind": request(tensor(contents=pb.InferTensorContents(int_contents=[0] * 256)), raw=[]),
    "fewer contents": request(tensor(contents=pb.InferTensorContents(fp32_contents=[0.0])), raw=[]),
    "a tensor twice": request(tensor(), tensor(), raw=[X.tobytes()] * 2),
    "another name": request(tensor(name="x")),
    "a name of lines": request(tensor(name="a\nb")),
    "another datatype": request(tensor(datatype="FP31")),
    "bytes": request(tensor(datatype="BYTES")),
    "a negative shape": request(tensor(shape=[-1, -1, -16, -16])),
    "a shape that overflows": request(tensor(shape=[2**32 + 1, 1, 16, 16])),
    "a product that overflows": request(tensor(shape=[2**31 - 1] * 8)),
    "too many dimensions": request(tensor(shape=[1] * 100)),
    "too many tensors": request(*[tensor(name=str(i)) for i in range(100)], raw=[]),
    "NaN": request(raw=[np.full_like(X, np.nan).tobytes()]),
    "inf": request(raw=[np.full_like(X, np.inf).tobytes()]),
    "shared memory": request(tensor(parameters=SHARED)),
    "a million outputs": request(outputs=[OUTPUT(name=str(i)) for i in range(10_000)]),
    "an output twice": request(outputs=[OUTPUT(name="output")] * 2),
    "another output": request(outputs=[OUTPUT(name="o")]),
    "a long id": request(id="x" * 1000),
    "a time that is none": request(parameters={"timeout": pb.InferParameter(int64_param=-1)}),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_malformed(infer, bad: pb.ModelInferRequest) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        infer(bad)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, caught.value
    text = caught.value.details()
    assert text
    assert not any(word in text for word in ("Traceback", "Exception", "site-packages", "\n"))


@pytest.mark.parametrize("name", ["", "large", "../small", "/etc/passwd", "small\0"])
def test_names_are_matched_exactly(infer, name: str) -> None:
    one = request()
    one.model_name = name
    with pytest.raises(grpc.RpcError) as caught:
        infer(one)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert "passwd" not in caught.value.details()


def test_too_large_no_protobuf_and_much_metadata(infer) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        infer(request(raw=[b"0" * 2**21]))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.RpcError):
        infer(b"\xff" * 100)
    with pytest.raises(grpc.RpcError):
        infer(request(), metadata=[("a", "b" * 100_000)])
    assert len(infer(request()).outputs) == 1


def test_a_key(serve, model: Served) -> None:
    key = "0123456789abcdef"
    server = serve(HSCC_API_KEY=key)
    server.wait()
    with grpc.insecure_channel(server.rpc) as channel:
        call = channel.unary_unary(
            f"/{rpc.NAME}/ModelInfer", pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString
        )
        for metadata in (None, [("authorization", "Bearer no")], [("x-api-key", "")]):
            with pytest.raises(grpc.RpcError) as caught:
                call(request(), metadata=metadata)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        for metadata in ([("authorization", f"Bearer {key}")], [("x-api-key", key)]):
            assert len(call(request(), metadata=metadata).outputs) == 1
