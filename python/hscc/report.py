"""What compression did: one row a layer, totals, reasons; prints as a table and serialises to JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace


@dataclass(frozen=True)
class LayerReport:
    """One convolution. FLOPs are for one image; a dense layer has no ranks, and ``reason`` says why it stayed so.

    Bytes are those of numbers and index tensors. Milliseconds are for a call, measured for the dense layer and
    predicted for the compressed one; None where the machine's speed did not count.

    ``rows`` is the size of the pool that regions share; 0 where every region has rows of its own.
    ``squeeze`` is the number of channels to which the layer projects its inputs first; 0 where it does not.
    ``error`` is the share of the layer's output energy (weighted by sensitivity) that the factors are predicted to
    miss, on calibration samples that they were not made from.
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


@dataclass(frozen=True)
class Report:
    """Totals are over all convolutions of the model, the untouched ones with their FLOPs.

    ``latency_error`` is the median relative error of the predicted times, on layer shapes that they were not made from;
    ``measured_speedup`` is what came, all convolutions timed dense and compressed in turn, once the model was finished.
    ``refitted`` names the parameters of other layers that changed with the convolutions. ``seconds`` are those of each
    stage of the work.
    """

    layers: tuple[LayerReport, ...]
    warnings: tuple[str, ...] = ()
    latency_error: float | None = None
    refitted: tuple[str, ...] = ()
    measured_speedup: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)

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
        return cls(layers, warnings, data.get("latency_error"), refitted, measured, seconds)

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        timed = self.latency_error is not None
        table = Table("layer", "regions", "ranks", "MFLOP", "fewer", "parameters", "error", *(["ms"] if timed else []))
        for layer in self.layers:
            table.add_row(
                layer.name,
                (f"{len(layer.ranks)} share {layer.rows}" if layer.rows else str(len(layer.ranks) or "-"))
                + (f" of {layer.squeeze}" if layer.squeeze else ""),
                layer.reason or "; ".join(" ".join("dense" if r is None else str(r) for r in c) for c in layer.ranks),
                f"{layer.dense_flops / 1e6:.1f} > {layer.flops / 1e6:.1f}",
                f"{layer.dense_flops / max(layer.flops, 1):.2f}x",
                f"{layer.dense_parameters} > {layer.parameters}",
                f"{layer.error:.4f}",
                *([f"{layer.dense_ms:.3f} > {layer.ms:.3f}"] if timed else []),
            )
        table.add_section()
        table.add_row(
            "all",
            "",
            "",
            f"{self.dense_flops / 1e6:.1f} > {self.flops / 1e6:.1f}",
            f"{self.flop_reduction:.2f}x",
            f"{self.dense_parameters} > {self.parameters}",
            "",
            *([f"{self.dense_ms:.3f} > {self.ms:.3f}"] if timed else []),
        )
        console = Console(width=120)
        with console.capture() as capture:
            console.print(table)
            size = f"{self.dense_bytes / 1e6:.2f} > {self.bytes / 1e6:.2f} MB ({self.byte_reduction:.2f}x)"
            speed = f", {self.speedup:.2f}x faster (predicted; median error {self.latency_error:.0%})" if timed else ""
            speed += f", {self.measured_speedup:.2f}x measured" if self.measured_speedup else ""
            console.print(f"convolutions: {size}{speed}", markup=False, highlight=False)
            if self.refitted:
                console.print(f"refitted to them: {', '.join(self.refitted)}", markup=False, highlight=False)
            if self.seconds:
                longest = sorted(self.seconds.items(), key=lambda stage: -stage[1])
                told = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in longest if seconds >= 0.05)
                console.print(f"took {sum(self.seconds.values()):.1f} s: {told}", markup=False, highlight=False)
            for warning in self.warnings:
                console.print(f"warning: {warning}", markup=False, highlight=False)
        return capture.get()
