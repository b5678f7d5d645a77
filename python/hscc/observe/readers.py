"""What reads the outputs of convolutions: which of their errors are not seen, and what they can make up for."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from . import distributed
from .data import Calibration, evaluation, watch
from .values import tensors

_BATCH_NORM, _HARDTANH = inspect.signature(F.batch_norm), inspect.signature(F.hardtanh)
_RELU = {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
_ADD = {torch.add, Tensor.add, Tensor.add_}


class Beside(NamedTuple):
    """What a sum adds to outputs: in the same pass the input of a module of that name, or its output."""

    module: str
    output: bool


class Reader(NamedTuple):
    """act(scale y + shift + s): all that is made of outputs y.

    scale and shift (O, 1, 1) are those of a batch norm, else 1 and 0; s is what a sum adds, where there is one; act is
    a ReLU, clipped at ``top`` (infinity where it is not), or where ``top`` is None anything at all.
    """

    scale: Tensor
    shift: Tensor
    top: float | None = None
    beside: Beside | None = None

    @property
    def lenient(self) -> bool:
        """Whether outputs other than the dense model's can be as good for it."""
        return self.top is not None or self.beside is not None

    def change(self, y: Tensor, now: Tensor, sums: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """What to add to y so that act gives what it should, with outputs as near to ``now`` as can be.

        y (N, O, Ho, Wo) are outputs in the dense model, ``now`` those in the student; ``sums`` what is added there and
        in the student.
        """
        wanted = torch.addcmul(self.shift, self.scale, y)
        change = torch.zeros_like(wanted)
        if sums:
            theirs, ours = sums
            wanted, change = wanted + theirs, theirs - ours
        if self.top is not None:
            got = torch.addcmul(self.shift, self.scale, now)
            got = got + ours if sums else got
            change = change + (got.clamp_max(0) - wanted).masked_fill_(wanted > 0, 0)
            if math.isfinite(self.top):
                change += (got.clamp_min_(self.top) - wanted).masked_fill_(wanted < self.top, 0)
        return change.div_(self.scale).masked_fill_(self.scale == 0, 0)


class _Call(NamedTuple):
    """A call of one of PyTorch's functions."""

    function: Any
    args: tuple
    kwargs: dict[str, Any]

    def bound(self, signature: inspect.Signature) -> dict[str, Any]:
        """Its arguments by name, defaults too."""
        call = signature.bind(*self.args, **self.kwargs)
        call.apply_defaults()
        return call.arguments

    @property
    def top(self) -> float | None:
        """Where it clips: infinity for a ReLU; None where it is none."""
        if self.function in _RELU:
            return math.inf
        if self.function is F.relu6:
            return 6.0
        if self.function is F.hardtanh:
            limits = self.bound(_HARDTANH)
            return float(limits["max_val"]) if limits["min_val"] == 0 else None
        return None

    @property
    def affine(self) -> tuple[Tensor, Tensor] | None:
        """Scale and shift (O, 1, 1) of ``F.batch_norm``; None for another and where it looks at the batch."""
        if self.function is not F.batch_norm:
            return None
        _, mean, variance, weight, bias, training, _, eps = self.bound(_BATCH_NORM).values()
        if training or mean is None:
            return None
        scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
        shift = (0 if bias is None else bias) - mean * scale
        return scale[:, None, None], shift[:, None, None]

    def added(self, tensor: Tensor) -> Tensor | None:
        """What it adds to a tensor, of the same shape."""
        others = [t for t in self.args if isinstance(t, Tensor) and t is not tensor and t.shape == tensor.shape]
        return others[0] if self.function in _ADD and not self.kwargs and len(self.args) == 2 and others else None


@dataclass
class _Output:
    """One output of a convolution on its way: it goes on as what a batch norm, then a sum, makes of it."""

    reader: Reader
    age: int
    besides: tuple[Beside, ...] = ()  # places of what the sum adds
    steps: int = 0
    tops: set[float] = field(default_factory=set)
    others: bool = False
    early: bool = False  # another reads it that does not see the last step

    def known(self, once: Callable[[Beside], bool]) -> Reader | None:
        """When all has been seen; ``once`` says which places a pass comes by once only."""
        if self.early:
            return None
        beside = next(filter(once, self.besides), None)
        alone = len(self.tops) == 1 and not self.others and (beside or not self.besides)
        return self.reader._replace(top=min(self.tops) if alone else None, beside=beside)

    def read(self, gone: int) -> None:
        """By what is not known, when it had gone so many steps."""
        self.others, self.early = True, self.early or gone < self.steps


class _Watch(TorchFunctionMode):
    """Sees all functions of PyTorch that read outputs, and what modules take and give."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = WeakTensorKeyDictionary()  # to an output and how many steps it had gone
        self.places = WeakTensorKeyDictionary()  # to its version and (age, where it is) of each place
        self.calls: Counter[str] = Counter()
        self.age = 0

    def follow(self, y: Tensor) -> _Output:
        one = torch.ones(y.shape[-3], 1, 1).to(y)
        output = _Output(Reader(one, torch.zeros_like(one)), self.age)
        self.seen[y] = output, 0
        return output

    def place(self, value: Any, where: Beside) -> None:
        self.age += 1
        if isinstance(value, Tensor) and not value.is_inference():
            version, places = self.places.get(value, (None, []))
            same = places if version == value._version else []
            self.places[value] = value._version, [*same, (self.age, where)]

    def __torch_function__(self, function, types, args=(), kwargs=None):
        call = _Call(function, args, kwargs or {})
        read = [(t, *self.seen[t]) for t in tensors((call.args, call.kwargs)) if t in self.seen]
        steps = [self._step(call, *one) for one in read]  # before anything is changed in place
        result = function(*args, **call.kwargs)
        for (tensor, output, gone), step in zip(read, steps, strict=True):
            if isinstance(step, float):
                output.tops.add(step)
                if result is tensor:  # in place: from now on it is the rectified one
                    del self.seen[tensor]
            elif step:
                output.reader, output.besides = (step, ()) if isinstance(step, Reader) else (output.reader, step)
                output.steps += 1
                self.seen[result] = output, output.steps
            elif any(True for _ in tensors(result)):  # sizes and the like do no harm
                output.read(gone)
        return result

    def _step(
        self, call: _Call, tensor: Tensor, output: _Output, gone: int
    ) -> float | Reader | tuple[Beside, ...] | None:
        """Where a ReLU clips an output, what a batch norm makes of it, or places of what a sum adds; else nothing."""
        if gone < output.steps:
            return None
        if call.top is not None:
            return call.top
        if output.tops or output.others or output.besides:
            return None
        if affine := call.affine:
            scale, shift = affine
            return Reader(output.reader.scale * scale, output.reader.shift * scale + shift)
        return self._places_of(call.added(tensor), output.age)

    def _places_of(self, value: Tensor | None, age: int) -> tuple[Beside, ...]:
        """Where a tensor is before an output of that age, if unchanged since."""
        if value is None or value.is_inference() or value not in self.places:
            return ()
        version, places = self.places[value]
        return tuple(where for seen, where in places if seen < age) if version == value._version else ()


def find(model: nn.Module, calibration: Calibration, names: Iterable[str]) -> dict[str, Reader]:
    """Readers of the convolutions that have one, by a forward pass of the first batch."""
    layers, seen = {name: model.get_submodule(name) for name in names}, _Watch()
    outputs: dict[str, list[_Output]] = {name: [] for name in layers}
    follow = watch(layers, lambda name, x, y: outputs[name].append(seen.follow(y)))
    with evaluation(model), _places(model, seen), follow, seen:
        given = calibration.forward(model, calibration.first())
    for tensor in tensors(given):
        if tensor in seen.seen:
            output, gone = seen.seen[tensor]
            output.read(gone)
    readers = {name: [o.known(lambda b: seen.calls[b.module] == 1) for o in every] for name, every in outputs.items()}
    found = {name: one for name, several in readers.items() if (one := _common(several)) is not None}
    everywhere = set.intersection(*map(set, distributed.gather(sorted(found))))
    return {name: reader for name, reader in found.items() if name in everywhere}


@contextmanager
def _places(model: nn.Module, seen: _Watch) -> Iterator[None]:
    """Shows what modules take first, and what they give."""
    handles = []

    def note(name: str, module: nn.Module) -> None:
        def before(_, args: tuple) -> None:
            seen.calls[name] += 1
            seen.place(args[0] if args else None, Beside(name, False))

        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(lambda _, args, y: seen.place(y, Beside(name, True))))

    try:
        for name, module in model.named_modules():
            note(name, module)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _common(readers: Sequence[Reader | None]) -> Reader | None:
    """Of all calls of a convolution; what sums add to several is not known."""
    if not readers or None in readers:
        return None
    first, *more = readers
    if not all(torch.equal(a, b) for r in more for a, b in zip(r[:2], first[:2], strict=True)):
        return None
    alike = not more or all(r.top == first.top and not r.beside for r in readers)
    return first if alike else first._replace(top=None, beside=None)
