"""What compression did: one row a layer, totals, reasons; prints as a table and serialises to JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

TORCH = "PyTorch"  # among the runtimes
_SUMS = ("dense_flops", "flops", "dense_parameters", "parameters", "dense_bytes", "bytes")


@dataclass(frozen=True)
class LayerReport:
    """One convolution. FLOPs are for one image; a dense layer has no ranks, and ``reason`` says why it stayed so.

    Bytes are those of numbers and index tensors. Milliseconds are for a call, measured for the dense layer and
    predicted for the compressed one; None where the machine's speed did not count.

    ``rows`` is the size of the pool that regions share; 0 where every region has rows of its own.
    ``squeeze`` is the number of channels to which the layer projects its inputs first; 0 where it does not.
    ``error`` is the share of the layer's output energy (weighted by sensitivity) that the factors are predicted to
    miss, on calibration samples that they were not made from. ``alone`` is the share of the energy of the network's
    outputs, about their mean, that changes with this layer alone in place; known where an accuracy was asked for.

    Of a grouped convolution the regions of all ``groups`` follow each other, and ``error`` is their mean.
    """

    name: str
    dense_flops: int
    flops: int
    dense_parameters: int
    parameters: int
    dense_bytes: int = 0
    bytes: int = 0
    dense_ms: float | None = None
    ms: float | None = None
    ranks: tuple[tuple[int | None, ...], ...] = ()
    rows: int = 0
    squeeze: int = 0
    region_sizes: tuple[int, ...] = ()
    error: float = 0.0
    reason: str | None = None
    shared_with: tuple[str, ...] = ()
    alone: float | None = None
    groups: int = 1


def joined(rows: Sequence[LayerReport], wholes: Mapping[str, str]) -> list[LayerReport]:
    """With one row for all groups of a convolution, whose name ``wholes`` has, unless some have a squeeze."""
    groups: dict[str, list[LayerReport]] = {}
    for row in rows:
        groups.setdefault(wholes.get(row.name, row.name), []).append(row)
    split = {name for name, several in groups.items() if len(several) == 1 or any(row.squeeze for row in several)}
    return [row for name, several in groups.items() for row in (several if name in split else [_whole(name, several)])]


def _whole(name: str, groups: Sequence[LayerReport]) -> LayerReport:
    factored = [row for row in groups if not row.reason]
    first = (factored or groups)[0]
    sums = {field: sum(getattr(row, field) for row in groups) for field in _SUMS}
    if first.ms is not None:
        sums |= {field: sum(getattr(row, field) for row in groups) for field in ("dense_ms", "ms")}
    if factored:  # a group that stays dense has one region without ranks
        positions = sum(first.region_sizes)
        parts = [(row.ranks, row.region_sizes) if row.ranks else (((None,),), (positions,)) for row in groups]
        sums |= {"ranks": sum((ranks for ranks, _ in parts), ()), "region_sizes": sum((s for _, s in parts), ())}
    error = sum(row.error for row in groups) / len(groups)
    return replace(first, name=name, groups=len(groups), error=error, rows=0, **sums)


@dataclass(frozen=True)
class Trial:
    """A compression that was looked at for an accuracy: ``limit`` times less of what was to be saved.

    In points (percent) of the mean score of ``samples``: what was lost, and the most that the true loss is at the
    confidence of a trial. ``ms`` is the median time of a call of the whole model; None where it was not measured.
    """

    limit: float
    flop_reduction: float
    parameter_reduction: float
    drop: float
    bound: float
    samples: int
    holds: bool
    ms: float | None = None
    chosen: bool = False


@dataclass(frozen=True)
class Whole:
    """Milliseconds of a call of the whole network with so many ``images``, after :func:`hscc.fuse_`.

    ``dense_ms`` of the dense one by runtime, ``rest_ms`` of all but the layers that are compressed; of the compressed
    one by prediction, and measured once it was there.
    """

    images: int
    dense_ms: Mapping[str, float]
    rest_ms: float
    predicted_ms: float | None = None
    measured_ms: float | None = None

    @property
    def best(self) -> str:
        """The runtime in which the dense network is fastest."""
        return min(self.dense_ms, key=self.dense_ms.__getitem__)

    @property
    def speedup(self) -> float:
        """Over the best runtime: measured, or by prediction where it was not."""
        return self.dense_ms[self.best] / (self.measured_ms or self.predicted_ms)


@dataclass(frozen=True)
class Report:
    """Totals are over all convolutions of the model, the untouched ones with their FLOPs.

    ``latency_error`` is the median relative error of the predicted times, on layer shapes that they were not made from;
    ``measured_speedup`` is what came, all convolutions timed dense and compressed in turn, once the model was finished.
    ``whole`` are times of the whole network, where the machine's speed counts.
    ``refitted`` names the parameters of other layers that changed with the convolutions. ``seconds`` are those of each
    stage of the work. ``trials`` are those made where an accuracy was asked for; ``dense_score`` (0..1) and
    ``dense_call_ms`` are what the dense model scored and took there. ``int8`` are the layers with a first stage in 8
    bits, and the share of their output energy that these miss.
    """

    layers: tuple[LayerReport, ...]
    warnings: tuple[str, ...] = ()
    latency_error: float | None = None
    refitted: tuple[str, ...] = ()
    measured_speedup: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)
    trials: tuple[Trial, ...] = ()
    dense_score: float | None = None
    dense_call_ms: float | None = None
    int8: Mapping[str, float] = field(default_factory=dict)
    whole: Whole | None = None

    @property
    def chosen(self) -> Trial | None:
        """The trial that this model comes from."""
        return next((trial for trial in self.trials if trial.chosen), None)

    @property
    def portable(self) -> bool:
        """Whether an export is plain convolutions: no layer has several regions or clusters."""
        return all(
            len(layer.ranks) <= layer.groups and all(len(ranks) <= 1 for ranks in layer.ranks) for layer in self.layers
        )

    @property
    def skipped(self) -> dict[str, str]:
        """Convolutions that stayed as they were, with the reason."""
        return {layer.name: layer.reason for layer in self.layers if layer.reason}

    @property
    def dense_flops(self) -> int:
        return sum(layer.dense_flops for layer in self.layers)

    @property
    def flops(self) -> int:
        return sum(layer.flops for layer in self.layers)

    @property
    def dense_parameters(self) -> int:
        return sum(layer.dense_parameters for layer in self.layers)

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def flop_reduction(self) -> float:
        return self.dense_flops / max(self.flops, 1)

    @property
    def parameter_reduction(self) -> float:
        return self.dense_parameters / max(self.parameters, 1)

    @property
    def dense_bytes(self) -> int:
        return sum(layer.dense_bytes for layer in self.layers)

    @property
    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers)

    @property
    def byte_reduction(self) -> float:
        return self.dense_bytes / max(self.bytes, 1)

    @property
    def dense_ms(self) -> float | None:
        return None if self.latency_error is None else sum(layer.dense_ms for layer in self.layers)

    @property
    def ms(self) -> float | None:
        return None if self.latency_error is None else sum(layer.ms for layer in self.layers)

    @property
    def speedup(self) -> float | None:
        """Predicted, of all convolutions."""
        return None if self.latency_error is None else self.dense_ms / self.ms

    def warned(self, warning: str) -> Report:
        """The same with one more warning."""
        return replace(self, warnings=(*self.warnings, warning))

    def to_dict(self) -> dict:
        """Plain data for JSON."""
        reductions = ("flop_reduction", "parameter_reduction", "byte_reduction", "speedup")
        totals = (f"{dense}{name}" for name in ("flops", "parameters", "bytes", "ms") for dense in ("dense_", ""))
        return {**asdict(self), **{name: getattr(self, name) for name in (*totals, *reductions)}}

    @classmethod
    def from_dict(cls, data: dict) -> Report:
        layers = tuple(
            LayerReport(
                **{
                    **layer,
                    "ranks": tuple(tuple(ranks) for ranks in layer["ranks"]),
                    "region_sizes": tuple(layer["region_sizes"]),
                    "shared_with": tuple(layer["shared_with"]),
                }
            )
            for layer in data["layers"]
        )
        refitted, measured = tuple(data.get("refitted", ())), data.get("measured_speedup")
        warnings, seconds = tuple(data["warnings"]), data.get("seconds", {})
        trials = tuple(Trial(**trial) for trial in data.get("trials", ()))
        dense = data.get("dense_score"), data.get("dense_call_ms"), data.get("int8", {})
        whole = Whole(**data["whole"]) if data.get("whole") else None
        return cls(layers, warnings, data.get("latency_error"), refitted, measured, seconds, trials, *dense, whole)

    def __str__(self) -> str:
        from .tables import told

        return told(self)
