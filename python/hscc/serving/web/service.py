"""What both fronts do with a request: whose it is, which model's, and its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ... import _version
from ..engine import Answer, Engine
from ..errors import BadRequest
from ..metrics import page
from ..signature import TensorSpec
from . import keys, protocol
from .limits import WebLimits
from .protocol import InferRequest
from .refusals import NotFound, Unauthorized

DEFAULT = WebLimits()
GUARD = {"guard_score": "FP32", "guard_flagged": "BOOL"}  # outputs that a guard adds, one an image


@dataclass(frozen=True)
class Service:
    """Engines by their models' names, behind an optional key.

    Raises ValueError for two models of one name, and for a key that a header cannot carry.
    """

    engines: Sequence[Engine]
    limits: WebLimits = DEFAULT
    key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if len({engine.model.name for engine in self.engines}) != len(self.engines):
            raise ValueError(f"models: got {[e.model.name for e in self.engines]}, expected every name once")
        if self.key is not None:
            keys.check(self.key)

    @property
    def live(self) -> bool:
        return all(engine.live for engine in self.engines)

    @property
    def ready(self) -> bool:
        return all(engine.ready for engine in self.engines)

    def authorise(self, headers: Mapping[str, str]) -> None:
        """Raises Unauthorized unless the headers (lower-case names) show the key, if there is one."""
        if self.key is not None and not keys.shown(headers, self.key):
            raise Unauthorized("key: got none or another one, expected the server's as 'Authorization: Bearer KEY'")

    def engine(self, name: str, version: str = "") -> Engine:
        """The engine of exactly that name, of any version where none is named. Raises NotFound."""
        for engine in self.engines:
            if engine.model.name == name and version in ("", engine.model.version):
                return engine
        raise NotFound("model: got a name or version that is not served, expected one of GET /v2")

    def about(self) -> dict:
        """The protocol's server metadata, and the models' names."""
        names = [engine.model.name for engine in self.engines]
        extensions = [*protocol.EXTENSIONS]
        return {"name": "hscc", "version": _version.__version__, "extensions": extensions, "models": names}

    def describe(self, engine: Engine) -> dict:
        """The protocol's model metadata; parameters have the file's SHA-256 and the classes."""
        model, guard = engine.model, ()
        if engine.guard is not None:
            guard = tuple({"name": name, "datatype": kind, "shape": [-1]} for name, kind in GUARD.items())
        return {
            "name": model.name,
            "versions": [model.version],
            "platform": f"hscc_{model.kind}",
            "inputs": [_tensor(spec) for spec in model.inputs],
            "outputs": [*map(_tensor, model.outputs), *guard],
            "parameters": {"digest": model.digest, "labels": [*model.labels]},
        }

    async def metrics(self) -> tuple[bytes, str]:
        """The engines' metrics in Prometheus' text format, and its content type."""
        return page(engine.metrics for engine in self.engines)

    async def answer(self, engine: Engine, request: InferRequest) -> dict[str, tuple[Tensor, bool]]:
        """The outputs that were asked for, each with whether it goes as binary.

        Raises what the Engine does, and BadRequest for other inputs or outputs than the model's.
        """
        (spec,) = engine.inputs
        if request.inputs.keys() != {spec.name}:
            raise BadRequest(f"inputs: got other names, expected [{spec.name!r}]")
        names = {one.name for one in engine.outputs}.union(GUARD)
        if request.wanted is not None and not request.wanted.keys() <= names:
            raise BadRequest(f"outputs: got other names, expected some of {[one.name for one in engine.outputs]}")
        answer = await engine.infer(request.inputs[spec.name], deadline=request.deadline)
        return protocol.chosen(request, outputs(answer))


def outputs(answer: Answer) -> dict[str, Tensor]:
    """The model's outputs, and the guard's."""
    if answer.guard is None:
        return answer.outputs
    return {**answer.outputs, **dict(zip(GUARD, (answer.guard, answer.flagged), strict=True))}


def label(engine: Engine, found: Mapping[str, tuple[Tensor, bool]]) -> str | None:
    """The class of one image: of the largest output, or of a single one its sign; None without classes."""
    labels, values = engine.model.labels, [value for name, (value, _) in found.items() if name not in GUARD]
    if len(values) != 1 or values[0].ndim != 2 or values[0].shape[1] not in (1, len(labels)) or len(labels) < 2:
        return None
    row = values[0][0]
    return labels[int(row.argmax()) if len(row) > 1 else int(row[0] > 0)]


def _tensor(spec: TensorSpec) -> dict:
    return {"name": spec.name, "datatype": spec.dtype, "shape": [*spec.shape]}
