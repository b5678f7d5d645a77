"""Inputs in the student beside outputs in the dense model: held passes see what passes from the start see."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hscc.nn.surgery import Student
from hscc.observe.data import Calibration
from hscc.observe.held import rehearse
from hscc.observe.pairs import Pairs
from torch import Tensor, nn

NAMES = ("one", "two", "three", "four")


class Net(nn.Module):
    """Four convolutions, a residual sum, ReLUs in place."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(3 if i == 0 else 6, 6, 3, padding=1) for i in range(3))
        self.four = nn.Conv2d(6, 4, 1)
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.one(x))
        return self.four(self.rest(x))

    def rest(self, x: Tensor) -> Tensor:
        return F.relu_(x + self.three(F.relu_(self.two(x))))


class KeepsItsSkip(Net):
    def rest(self, x: Tensor) -> Tensor:
        self.skip = x
        x = self.three(F.relu_(self.two(x)))
        return F.relu_(x + self.skip)


class HoldsALock(Net):
    def rest(self, x: Tensor) -> Tensor:
        with self.lock:
            return super().rest(x)


class ChangesPrecision(Net):
    def rest(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().rest(x).float()


class HasAMode(Net):
    def rest(self, x: Tensor) -> Tensor:
        with torch.device("cpu"):
            return super().rest(x)


class SwapsItsWeights(Net):
    """As ``torch.func.functional_call`` does: for the time of a call."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def rest(self, x: Tensor) -> Tensor:
        kept = self.scale
        self.scale = nn.Parameter(kept.detach() + 1)
        try:
            return super().rest(x) * self.scale
        finally:
            self.scale = kept


class TakesNoGradients(Net):
    def rest(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().rest(x)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


class Decides(Net):
    """Some batches go another way."""

    def rest(self, x: Tensor) -> Tensor:
        if len(x) == 3:
            return self.two(self.three(x))
        return self.two(x) if len(x) == 5 else super().rest(x)


def compressed(model: Net, sizes: tuple[int, ...], memory: int) -> tuple[dict[str, list], int]:
    """What is seen of each layer while the others become others; and how often the model was begun for that."""
    torch.manual_seed(1)
    data = [torch.randn(n, 3, 8, 8) for n in sizes]
    student = Student(model, {name: (name,) for name in NAMES})
    layers = {name: model.get_submodule(name) for name in NAMES}
    seen = {name: [] for name in NAMES}
    begun = []

    def forward(model: Net, x: Tensor) -> Tensor:
        begun.append(x)
        return model(x)

    with Pairs(student, Calibration.of(model, data, adapter=forward), layers, memory) as pairs:
        for name, layer in layers.items():
            pairs.visit(name, 1, lambda x, y, _, name=name: seen[name].append((x.clone(), y.clone())))
            other = nn.Conv2d(*layer.weight.shape[1::-1], layer.kernel_size, padding=layer.padding)
            pairs.put(name, other.requires_grad_(False))
    assert {name: model.get_submodule(name) for name in NAMES} == layers
    assert not model.lock.locked()
    assert torch.is_grad_enabled()
    assert getattr(model, "scale", 1) == 1
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == 0
    return seen, len(begun)


@pytest.mark.parametrize(
    ("kind", "held"),
    [
        *((kind, True) for kind in (Net, Decides, TakesNoGradients)),
        *((kind, False) for kind in (KeepsItsSkip, HoldsALock, ChangesPrecision, HasAMode, SwapsItsWeights)),
    ],
)
def test_held_passes_see_what_others_see(kind: type, held: bool) -> None:
    torch.manual_seed(0)
    model, sizes = kind().eval(), (4, 4, 3, 5, 4)
    anew, _ = compressed(model, sizes, 0)
    seen, begun = compressed(model, sizes, 2**30)
    for name in NAMES:
        assert len(seen[name]) == len(anew[name]) == (4 if kind is Decides and name == "three" else 5)
        for got, wanted in zip(in_order(seen[name]), in_order(anew[name]), strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    assert (begun <= 4 + 2 * 5 + 2 * 2) == held


def in_order(pairs: list) -> list:
    return sorted(pairs, key=lambda pair: (len(pair[0]), pair[0].sum().item()))


def test_what_memory_cannot_hold_begins_anew() -> None:
    torch.manual_seed(0)
    model, sizes = Net().eval(), (4, 4, 4, 4)
    student = Student(model, {name: (name,) for name in NAMES})
    layers = {name: model.get_submodule(name) for name in NAMES}
    size = rehearse(student, Calibration.of(model, torch.zeros(4, 3, 8, 8) + 0.5), layers)
    numbers = 4 * 64 * 4 * (2 * 12 + 3)  # at the third layer: what comes in and goes out, twice; the images
    assert numbers <= size <= 1.5 * numbers
    wanted, _ = compressed(model, sizes, 0)
    seen, begun = compressed(model, sizes, 2 * size)
    assert begun == 4 + 2 * 2 + 2 * 2 * len(NAMES)
    for name in NAMES:
        for got, other in zip(seen[name], wanted[name], strict=True):
            torch.testing.assert_close(got, other, rtol=0, atol=0)


def test_a_model_that_refuses_other_values_is_not_refused() -> None:
    """The rehearsal gives the model values that it would never see."""

    class Refuses(Net):
        def forward(self, x: Tensor) -> Tensor:
            if self.one(x).mean() < 0:
                raise ValueError("dark")
            return super().forward(x)

    torch.manual_seed(0)
    model = Refuses().eval()
    model.one.bias.data += 5
    student = Student(model, {name: (name,) for name in NAMES})
    layers = {name: model.get_submodule(name) for name in NAMES}
    assert rehearse(student, Calibration.of(model, torch.randn(4, 3, 8, 8)), layers) is None


def test_an_error_in_a_held_pass_is_told_and_ends_all() -> None:
    torch.manual_seed(0)

    class Fails(Net):
        def __init__(self) -> None:
            super().__init__()
            self.ended = Counter()

        def rest(self, x: Tensor) -> Tensor:
            try:
                if len(x) == 2:
                    raise ValueError("of two")
                return super().rest(x)
            finally:
                self.ended.update([len(x)])

    model = Fails().eval()
    with pytest.raises(ValueError, match="of two"):
        compressed(model, (4, 2), 2**30)
    assert model.ended == {4: 4 + 1, 2: 1}  # in the rehearsal, and one of the student
    assert sum(len(m._forward_hooks) for m in model.modules()) == 0


def test_a_layer_that_runs_twice() -> None:
    """Inputs in one model, outputs in the other, as they were before anything worked on them in place."""
    torch.manual_seed(0)
    again, relu = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(inplace=True)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), again, relu, again, relu)
    student = Student(model, {"0": ("0",)})
    student.replace("0", nn.Conv2d(3, 3, 1))
    first, other, seen = model[0], student.modules["0"], []
    data = [torch.randn(4, 3, 8, 8) for _ in range(3)]
    with Pairs(student, Calibration.of(model, data), {}, 2**30) as pairs:
        pairs.visit("1", 2, lambda x, y, _: seen.append((x, y)))
    with torch.no_grad():
        for batch, one, two in zip(data, seen[::2], seen[1::2], strict=True):
            x, y = other(batch), again(first(batch))
            for got, wanted in zip((*one, *two), (x, y, again(x).relu(), again(y.relu())), strict=True):
                torch.testing.assert_close(got, wanted)
    assert model[0] is first
