"""One layer of a compressed network, fitted to what the dense network gives there. Derivation: ``docs/math.md``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config import Config
from ..maths.factors import Basis
from ..maths.frame import project
from ..maths.moments import Moments
from ..nn.conv2d import HSCConv2d, dense_bias, patches, weight_rows
from ..nn.projection import Projection, SqueezedConv2d
from ..observe import calibrate, distributed
from ..observe.pairs import Pairs, Sums
from ..observe.readers import Reader
from ..search.plan import LayerPlan
from . import fitting

ROUNDS = 3  # of fits that look through the ReLU; most is won by the first
KEPT = 2**29  # bytes of a layer's inputs and outputs that they look at
PATCH_PRODUCTS = 4  # times those of the dense layer that moments of patches may take
PATCH_MOMENTS = 2**29  # bytes that they may take
AT_A_TIME = 2**24  # numbers of a basis


@dataclass(frozen=True)
class Values:
    """What the factors of a layer are computed from: values of ``basis``, of inputs behind ``squeeze``."""

    conv: nn.Conv2d
    squeeze: Projection | None
    basis: Basis
    patched: bool

    @classmethod
    def of(cls, layer: LayerPlan) -> Values:
        """Patches where their moments are affordable, else outputs of the dense layer."""
        stats, squeeze, conv = layer.stats, layer.structure.squeeze, layer.structure.conv(layer.stats)
        rows, bias = weight_rows(conv).double(), dense_bias(conv).double()
        outputs, length = rows.shape
        quick = length**2 <= PATCH_PRODUCTS * stats.conv.weight.numel()
        patched = length <= outputs or (quick and 8 * stats.cells.count * length**2 <= PATCH_MOMENTS)
        basis = Basis.patches(rows) if patched else Basis.outputs(rows, bias)
        return cls(conv, squeeze.layer() if squeeze else None, basis, patched)

    def parts(self, x: Tensor, y: Tensor, known: tuple[Tensor, ...] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """x (N, C, H, W) as its values (n, X, Ho, Wo), and y (N, O, Ho, Wo), few images at a time.

        Values that are ``known`` are not made again.
        """
        count = max(1, AT_A_TIME // (len(self.basis.weight) * y.shape[2:].numel()))
        made = known or (self._values(part) for part in x.split(count))
        yield from zip(made, y.split(count), strict=True)

    def _values(self, x: Tensor) -> Tensor:
        inputs = x if self.squeeze is None else self.squeeze(x)
        return patches(self.conv, inputs) if self.patched else self.conv(inputs)


class Sample(NamedTuple):
    """Of a layer: its input in the student, its output in the dense model, what a sum adds to it in either, and the
    values of ``Values.parts``, where they are kept."""

    x: Tensor
    y: Tensor
    sums: Sums
    values: tuple[Tensor, ...] | None


@dataclass
class Samples:
    """Up to :data:`KEPT` bytes of inputs and outputs, and half of it of values."""

    kept: list[Sample] = field(default_factory=list)
    bytes: int = 0
    of_values: int = 0

    def add(self, sample: Sample) -> None:
        self.bytes += sample.x.nbytes + sample.y.nbytes
        if self.bytes > KEPT:
            return
        self.of_values += sum(t.nbytes for t in sample.values or ())
        self.kept.append(sample if self.of_values <= KEPT // 2 else sample._replace(values=None))


def fit(pairs: Pairs, layer: LayerPlan, config: Config) -> HSCConv2d | SqueezedConv2d:
    """The factors of a layer for the inputs that it has in the student, where it is still dense.

    Differences that a ReLU behind it hides do not count, and those of what a sum adds are made up for, in as many
    samples as are kept.
    """
    values, reader = Values.of(layer), layer.stats.reader
    moments, samples = gather(pairs, layer, values)
    fitted = fitting.fit(layer, moments, config, values.basis)
    for _ in range(0 if reader is None or not reader.lenient else 1 if reader.top is None else ROUNDS):
        behind = _behind(reader, fitted, moments, samples, values, layer.stats.frame.into)
        fitted = fitting.fit(layer, behind, config, values.basis)
    return fitted


def gather(pairs: Pairs, layer: LayerPlan, values: Values) -> tuple[Moments, Samples]:
    """Moments of the values in the student against the outputs of the dense model, and the first of the samples."""
    stats, samples = layer.stats, Samples()
    moments = stats.empty(stats.frame, width=len(values.basis.weight))

    def see(x: Tensor, y: Tensor, sums: Sums) -> None:
        found = []
        for seen, wanted in values.parts(x, y):
            moments.add(seen, project(wanted, stats.frame.into))
            found.append(seen)
        samples.add(Sample(x, y, sums, None if values.patched else tuple(found)))

    pairs.visit(stats.name, stats.profile.calls, see)
    calibrate.sum_({stats.name: moments})
    return moments, samples


@torch.no_grad()
def _behind(
    reader: Reader, fitted: nn.Module, moments: Moments, samples: Samples, values: Values, into: Tensor
) -> Moments:
    """The moments with the wanted outputs that are nearest to what ``fitted`` gives and as good for their reader.

    ``into`` (m, O) takes outputs to the layer's frame.
    """
    total, cross = torch.zeros_like(moments.target_total), torch.zeros_like(moments.cross)
    change = replace(moments, target_total=total, cross=cross)
    for x, y, sums, known in samples.kept:
        if sums or not reader.beside:
            for seen, further in values.parts(x, reader.change(y, fitted(x), sums), known):
                change.add_change(seen, project(further, into))
    distributed.sum_(total, cross)
    return replace(moments, target_total=moments.target_total + total, cross=moments.cross + cross)
