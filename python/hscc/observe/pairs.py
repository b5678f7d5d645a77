"""What layers read in the student beside what they give in the dense model, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext, suppress
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..nn.surgery import Student
from .data import Calibration, evaluation, images, watch
from .held import Gate, Pass, hold, keep, rehearse
from .readers import Beside

Sums = tuple[Tensor, Tensor] | None
See = Callable[[Tensor, Tensor, Sums], None]


class _Seen(Exception):
    """Ends a forward pass early: all that was asked for has been seen."""


class _Held(NamedTuple):
    """A batch and its passes."""

    batch: Any
    dense: Pass
    student: Pass


class Pairs:
    """Inputs of layers in a student beside their outputs in the dense model, as the student comes to be.

    Of each batch a dense pass and one of the student are held at a layer until the student has it: a pass over the
    data costs what it costs, however many layers there are. Where that is not possible (more batches than the memory
    holds, layers that run several times, models whose passes cannot be held) passes begin anew for each layer.

    Args:
        layers: those that will be visited, each called once in a pass, in the order in which they run.
        memory: bytes that passes may hold.
        besides: what sums add to the outputs of some of them.
    """

    def __init__(
        self,
        student: Student,
        calibration: Calibration,
        layers: Mapping[str, nn.Module],
        memory: int,
        besides: Mapping[str, Beside | None] = MappingProxyType({}),
    ) -> None:
        self.student, self.calibration, self.layers, self.memory = student, calibration, layers, memory
        self.besides = {name: beside for name, beside in besides.items() if beside and name in layers}
        self.gates = {name: Gate(name, layer) for name, layer in layers.items()}
        self.visited: set[str] = set()
        self.held: list[_Held] = []
        self.all_held = False
        self._until_exit = ExitStack()

    def __enter__(self) -> Pairs:
        size = rehearse(self.student, self.calibration, self.layers) if len(self.layers) > 1 else None
        if size is not None:
            batches = self.calibration.batches()
            self.held = [self._begun(batch) for batch in islice(batches, self.memory // max(size, 1))]
            self.all_held = next(batches, None) is None
            for beside in set(self.besides.values()):
                self._until_exit.callback(self._kept(beside).remove)
            self._until_exit.enter_context(watch(self.layers, lambda name, x, y: hold(name, y)))
        return self

    def __exit__(self, *error: object) -> None:
        with torch.set_grad_enabled(torch.is_grad_enabled()):  # passes that end in a no_grad of theirs set it
            self._until_exit.close()

    def visit(self, name: str, calls: int, see: See) -> None:
        """Calls ``see`` with the input of one layer in the student and its output in the dense model, call by call.

        And with what a sum adds to the output, in the dense model and in the student; None where that is not known.
        """
        held = self.held if name in self.gates else []
        with evaluation(self.student.model):
            with self.student.swapped(self.gates) if held else nullcontext():
                for one in held:
                    self._advance(one.student, name)
            for one in held:
                self._advance(one.dense, name)
                if one.dense.at == one.student.at == name:
                    see(images(one.student.tensor), images(one.dense.tensor), self._sums(one, name))
                else:
                    self._anew(one.batch, name, calls, see)
            if not (held and self.all_held):
                for batch in islice(self.calibration.batches(), len(held), None):
                    self._anew(batch, name, calls, see)
        self.visited.add(name)

    def put(self, name: str, module: nn.Module) -> None:
        """From now on ``module`` takes the place of that layer."""
        self.student.replace(name, module)
        self.visited.add(name)
        if name in self.gates:
            self.gates[name].open(module.forward)

    def _kept(self, beside: Beside) -> RemovableHandle:
        """A hook by which all held passes keep a tensor; gates share hooks with what they stand for."""
        module = self.student.model.get_submodule(beside.module)
        if beside.output:
            return module.register_forward_hook(lambda _, args, y: keep(beside, y))
        return module.register_forward_pre_hook(lambda _, args: keep(beside, args[0]))

    def _sums(self, one: _Held, name: str) -> Sums:
        """What a sum adds to the output of that layer; freed when no other layer needs it."""
        beside = self.besides.get(name)
        last = all(other != beside or n == name or n in self.visited for n, other in self.besides.items())
        take = dict.pop if last else dict.get
        kept = [take(p.kept, beside, None) for p in (one.dense, one.student)]
        return tuple(map(images, kept)) if all(t is not None for t in kept) else None

    def _begun(self, batch: Any) -> _Held:
        passes = [Pass(lambda: self.calibration.forward(self.student.model, batch)) for _ in range(2)]
        for one in passes:
            self._until_exit.callback(one.give_up)
        return _Held(batch, *passes)

    def _advance(self, held: Pass, name: str) -> None:
        """To that layer, or to another that comes first in this pass and has not been visited, or to the end."""
        while not held.dead and held.at != name and (held.at is None or held.at in self.visited):
            held.go_on()

    def _anew(self, batch: Any, name: str, calls: int, see: See) -> None:
        """By passes of this batch from the start up to the layer."""
        model = self.student.model
        layer = {name: model.get_submodule(name)}

        def run(inputs: bool) -> list[Tensor]:
            seen: list[Tensor] = []

            def keep(t: Tensor) -> None:
                seen.append(images(t).clone() if calls > 1 else images(t))  # what follows may work in place
                if len(seen) == calls:
                    raise _Seen

            how = {"before": lambda _, x: keep(x)} if inputs else {"after": lambda _, x, y: keep(y)}
            with watch(layer, **how), self.student.swapped() if inputs else nullcontext(), suppress(_Seen):
                self.calibration.forward(model, batch)
            return seen

        for x, y in zip(run(True), run(False), strict=True):
            see(x, y, None)
