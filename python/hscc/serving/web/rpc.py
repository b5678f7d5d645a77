"""The protocol by gRPC, over the same :class:`Service`."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

import grpc
from torch import Tensor

from ..errors import BadRequest
from ..signature import DATATYPES, DTYPES
from . import datatypes
from . import inference_pb2 as pb
from .protocol import MAX_TEXT, InferRequest, refuse
from .refusals import told
from .service import Service

NAME = "inference.GRPCInferenceService"
log = logging.getLogger("hscc.serving")
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
PUBLIC = ("ServerLive", "ServerReady")  # what an orchestrator asks, without a key


def server(service: Service, address: str) -> grpc.aio.Server:
    """A server on host:port, to be started in the running event loop. Raises OSError where the port is not free."""
    limits = service.limits
    made = grpc.aio.server(
        maximum_concurrent_rpcs=limits.connections,
        options=[
            ("grpc.max_receive_message_length", limits.body),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", limits.header_bytes),
            ("grpc.absolute_max_metadata_size", limits.header_bytes),
            ("grpc.so_reuseport", 0),
        ],
    )
    calls = _Calls(service)
    handlers = {name: _handler(service, name, getattr(calls, name)) for name in _METHODS}
    made.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))
    try:
        made.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"grpc-port: got {address}, which is not free or none of this machine") from error
    return made


class _Calls:
    """One method a call of the protocol: (its request) -> its response."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def ServerLive(self, request: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=self.service.live)

    async def ServerReady(self, request: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self.service.ready)

    async def ModelReady(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        return pb.ModelReadyResponse(ready=self.service.engine(request.name, request.version).ready)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        about = self.service.about()
        del about["models"]
        return pb.ServerMetadataResponse(**about | {"extensions": []})  # that of bytes in JSON is HTTP's

    async def ModelMetadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        described = self.service.describe(self.service.engine(request.name, request.version))
        del described["parameters"]
        return pb.ModelMetadataResponse(**described)

    async def ModelInfer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        engine = self.service.engine(request.model_name, request.model_version)
        found = await self.service.answer(engine, _asked(request, self.service.limits.tensors))
        response = pb.ModelInferResponse(
            model_name=request.model_name, model_version=engine.model.version, id=request.id
        )
        for name, (tensor, _) in found.items():
            response.outputs.add(name=name, datatype=DATATYPES[tensor.dtype], shape=tensor.shape)
            response.raw_output_contents.append(datatypes.to_bytes(tensor))
        return response


_METHODS = [name for name in vars(_Calls) if not name.startswith("_")]


def _handler(service: Service, name: str, call: Callable[..., Awaitable]) -> grpc.RpcMethodHandler:
    async def answer(request: object, context: grpc.aio.ServicerContext) -> object:
        try:
            if name not in PUBLIC:
                headers = context.invocation_metadata() or ()
                service.authorise({key: value for key, value in headers if isinstance(value, str)})
            return await call(request)
        except Exception as error:
            status, words = told(error)
            if status == 500:
                log.exception("a gRPC request failed", exc_info=error)
        await context.abort(CODES.get(status, grpc.StatusCode.INTERNAL), words)

    kind = getattr(pb, f"{name}Request")
    response = getattr(pb, f"{name}Response")
    return grpc.unary_unary_rpc_method_handler(answer, kind.FromString, response.SerializeToString)


def _asked(request: pb.ModelInferRequest, most: int) -> InferRequest:
    if max(len(request.inputs), len(request.outputs)) > most:
        raise BadRequest(f"tensors: got {max(len(request.inputs), len(request.outputs))}, expected at most {most}")
    if request.raw_input_contents and len(request.raw_input_contents) != len(request.inputs):
        got = f"{len(request.raw_input_contents)} for {len(request.inputs)} inputs"
        raise BadRequest(f"raw_input_contents: got {got}, expected one each, or none")
    raw = request.raw_input_contents or [None] * len(request.inputs)
    inputs = {one.name: _input(one, data) for one, data in zip(request.inputs, raw, strict=True)}
    wanted = dict.fromkeys((one.name for one in request.outputs), True)
    if len(inputs) != len(request.inputs) or len(wanted) != len(request.outputs):
        raise BadRequest("tensors: got a name twice, expected every name once")
    for one in request.outputs:
        refuse(one.parameters, f"output {one.name!r}")
    if len(request.id) > MAX_TEXT:
        raise BadRequest(f"id: got {len(request.id)} characters, expected at most {MAX_TEXT}")
    return InferRequest(inputs, request.id, wanted or None, True, _values(request.parameters))


def _input(one: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> Tensor:
    if not one.name.isprintable() or len(one.name) > MAX_TEXT:
        raise BadRequest(f"input: got no name, expected printable text of at most {MAX_TEXT} characters")
    name = f"input {one.name!r}"
    refuse(one.parameters, name)
    shape = datatypes.check_shape([*one.shape], name)
    if one.datatype not in DTYPES:
        raise BadRequest(f"{name}: got no known datatype, expected one of {[*DTYPES]}")
    filled = [field.name for field, _ in one.contents.ListFields()]
    if raw is not None:
        if filled:
            raise BadRequest(f"{name}: got contents and raw_input_contents, expected one of them")
        return datatypes.from_bytes(raw, one.datatype, shape, name)
    field = CONTENTS.get(one.datatype)
    if filled != [field]:
        raise BadRequest(f"{name}: got other contents, expected {field or 'raw_input_contents'} for {one.datatype}")
    return datatypes.from_json([*getattr(one.contents, field)], one.datatype, shape, name)


def _values(parameters: Mapping[str, pb.InferParameter]) -> dict[str, object]:
    chosen = {key: one.WhichOneof("parameter_choice") for key, one in parameters.items()}
    return {key: getattr(parameters[key], field) for key, field in chosen.items() if field}
