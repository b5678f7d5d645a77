"""Forward passes that are held inside layers and gone on with later, so that nothing is computed twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import copy_context
from typing import Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from ..nn.surgery import Student, inherit
from .data import Calibration, evaluation, watch
from .values import floating, tensors

ALIKE = 1e-4  # of the largest output: what rounding may change, held or not


class Pass(greenlet):
    """A forward pass that stops where :func:`hold` is called in it: at the layer ``at``, where it has ``tensor``.

    ``kept`` are the tensors that :func:`keep` was called with. It has no thread of its own, so that all passes share
    the settings that PyTorch keeps a thread (``_settings``).
    """

    at: str | None = None
    tensor: Tensor | None = None
    result: Any = None
    given_up: bool = False

    def __init__(self, run: Callable[[], Any]) -> None:
        super().__init__(run)
        self.gr_context = copy_context()
        self.kept: dict[Any, Tensor] = {}

    def go_on(self) -> None:
        """To the next layer that holds it, or to the end."""
        seen = self.switch()
        self.at, self.tensor = (None, None) if self.dead else seen
        self.result = seen if self.dead else None

    def give_up(self) -> None:
        """Ends it where it is: what it holds is freed, its ``finally`` blocks run."""
        self.given_up = True
        if self:  # begun and not ended
            self.throw(GreenletExit)
        self.at = self.tensor = None
        self.kept.clear()


def keep(key: Any, tensor: Tensor) -> None:
    """Leaves a tensor with the pass that calls it; does nothing outside of passes."""
    current = getcurrent()
    if isinstance(current, Pass):
        current.kept[key] = tensor


def hold(name: str, tensor: Tensor) -> None:
    """Stops the pass that calls it until it is gone on with; does nothing outside of passes."""
    current = getcurrent()
    if isinstance(current, Pass):
        if current.given_up:
            raise GreenletExit
        current.parent.switch((name, tensor))


class Gate(nn.Module):
    """In the place of a layer, with its hooks: holds each pass until it is told what the layer computes."""

    def __init__(self, name: str, layer: nn.Module) -> None:
        super().__init__()
        inherit(self, layer)
        self.name, self.opened = name, None

    def open(self, compute: Callable[[Tensor], Tensor]) -> None:
        self.opened = compute

    def forward(self, input: Tensor) -> Tensor:
        if self.opened is None:
            hold(self.name, input)
        return self.opened(input)


def rehearse(student: Student, calibration: Calibration, layers: Mapping[str, nn.Module]) -> int | None:
    """Bytes that a dense pass and one with other layers hold at most, side by side, of the first batch.

    None where passes of this model cannot be held: where held ones give something else than others (models that keep
    values in their modules), or hold a lock or a setting of PyTorch's meanwhile.
    """
    model, batch = student.model, calibration.first()
    gates = {name: Gate(name, layer) for name, layer in layers.items()}
    first = next(iter(layers))
    compute = {name: layer.forward for name, layer in layers.items()}
    compute[first] = lambda x: -layers[first].forward(x).flip(-3)  # so that the passes differ from there on

    def run() -> list[Tensor]:
        return floating(calibration.forward(model, batch))

    with evaluation(model):
        dense, one, two = run(), Pass(run), Pass(run)
        try:
            for name, gate in gates.items():
                gate.open(compute[name])
            with student.swapped(gates):
                other = run()
            if _alike(dense, other):
                return None
            for gate in gates.values():
                gate.opened = None
            with watch(layers, lambda name, x, y: hold(name, y)), _Storages() as storages:
                before = _settings(model)
                while not (one.dead and two.dead):
                    with student.swapped(gates):
                        if not two.dead:
                            two.go_on()
                    if two.at is not None:
                        gates[two.at].open(compute[two.at])
                    if _settings(model) == before and not one.dead:
                        one.go_on()
                    if _settings(model) != before:
                        return None
                    storages.note()
        except Exception:  # the dense model alone ran
            return None
        finally:
            one.give_up()
            two.give_up()
        together = _alike(dense, one.result) and _alike(other, two.result)
        return storages.most + sum(t.nbytes for t in tensors(batch)) if together else None


def _alike(several: list[Tensor], others: list[Tensor]) -> bool:
    def close(a: Tensor, b: Tensor) -> bool:
        if a.shape != b.shape:
            return False
        scale = a.abs().nan_to_num(0, 0, 0).max().item() if a.numel() else 0.0
        return torch.allclose(a, b, rtol=0, atol=ALIKE * scale, equal_nan=True)

    return len(several) == len(others) and all(map(close, several, others))


def _settings(model: nn.Module) -> tuple:
    """What a held pass would leave behind for others: settings of PyTorch's for this thread, values of the modules."""
    device = next((t.device.type for t in model.parameters()), "cpu")
    held = [
        {**vars(module), **dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        for module in model.modules()
    ]
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled(device),
        torch.get_autocast_dtype(device),
        len(_get_current_function_mode_stack()),
        len(_get_current_dispatch_mode_stack()),
        [{name: _mark(value) for name, value in values.items()} for values in held],
    )


def _mark(value: Any) -> Any:
    """What tells a value from another: plain ones themselves; whether a lock is taken; which object it is."""
    if isinstance(value, (int, float, str)) or (isinstance(value, tuple) and all(type(x) is int for x in value)):
        return value
    return value.locked() if callable(getattr(value, "locked", None)) else id(value)


class _Storages(TorchFunctionMode):
    """Counts the bytes that are alive of all that PyTorch's functions gave since it was entered."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for t in tensors(result):
            storage = t.untyped_storage()
            self.seen[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return result

    def note(self) -> None:
        self.seen = {key: (ref, size) for key, (ref, size) in self.seen.items() if not ref.expired()}
        self.most = max(self.most, sum(size for _, size in self.seen.values()))
