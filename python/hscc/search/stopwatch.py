"""Times of calls as ratios to a reference call beside them, so that a busy machine slows both alike."""

from __future__ import annotations

import functools
import operator
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..nn.padding import SameConv2d
from ..progress import track

_NEAR_CACHES = 2**23  # bytes, more than a core's own
_SECONDS, _LEAST_ROUNDS, _MOST_ROUNDS, _MOST_AGAIN = 8.0, 3, 40, 10
_MANY_SLICES = 0.03  # seconds; a process has a core for some 3 ms at a time where others wait


class Times(NamedTuple):
    """How many reference calls take as long as each call; the quickest one's seconds, and their median over it."""

    ratios: list[float]
    reference: float
    spread: float


def twin(conv: nn.Module) -> nn.Module:
    """A convolution as it is in a compressed model: channels last where it is two-dimensional.

    Made from its options and numbers: a deep copy fails where weights are computed (weight_norm).
    """
    own = {kind.__module__ for kind in (nn.Conv2d, nn.Linear, SameConv2d)}
    kind = next(kind for kind in type(conv).__mro__ if kind.__module__ in own)
    further = set() if getattr(conv, "transposed", False) else {"output_padding"}
    options = {name: getattr(conv, name) for name in kind.__constants__ if name not in further}
    twin = kind(**options, bias=conv.bias is not None, device="meta")
    layout = torch.channels_last if conv.weight.ndim == 4 else torch.contiguous_format
    twin.weight = nn.Parameter(conv.weight.detach().to(memory_format=layout), requires_grad=False)
    if conv.bias is not None:
        twin.bias = nn.Parameter(conv.bias.detach(), requires_grad=False)
    return twin


def call(module: nn.Module, conv: nn.Module, size: Sequence[int], batch: int) -> Callable[[], object]:
    """Of that module with images for the convolution."""
    x = images(size, batch, conv.weight)
    return functools.partial(module.forward, x.contiguous() if isinstance(conv, nn.Linear) else x)  # without hooks


def reference(like: Tensor) -> Callable[[], object]:
    """A dense convolution of 0.5 ms on a core: shorter than a slice, longer than what a call costs, and small."""
    conv = nn.Conv2d(64, 64, 3, padding=1, bias=False).to(like)
    return call(twin(conv), conv, (64, 28, 28), 1)


def images(size: Sequence[int], batch: int, like: Tensor) -> Tensor:
    x = torch.randn(batch, *size).relu_().to(like)
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _clock(like: Tensor) -> Callable[[], float]:
    """On a CPU this thread's processor time, which interrupts are no part of; on a GPU, or where it ticks, the wall's.

    With several threads too: beside an interrupted one this thread spins for some ms at most, and then sleeps.
    """
    fine = len({time.thread_time() for _ in range(100)}) > 10  # some systems count in ticks of 10 ms
    return time.thread_time if fine and not like.is_cuda else time.perf_counter


def ratios(calls: Sequence[Callable[[], object]], like: Tensor, description: str, show: bool) -> Times:
    """Of each call to a reference call for tensors like that one.

    They take turns, and the quickest of both are compared, as other work only adds time: even the quickest tenth was
    interrupted with two threads beside two processes. On the wall clock a reference is repeated for about as long as
    the call takes, up to some slices: whatever lasts longer than a slice of a busy core is interrupted each time, and
    both are as much. (Ratios round by round would scatter: of two within one slice, one is interrupted.) Before each
    call the near caches are filled with something else, as other layers do in a network.
    """
    standard, clock, others = reference(like), _clock(like), torch.ones(_NEAR_CACHES // 4)
    longest = _MANY_SLICES if clock is time.perf_counter else 0.0

    def timed(call: Callable[[], object], count: int = 1) -> float:
        start = clock()
        for _ in range(count):
            call()
            if like.is_cuda:
                torch.cuda.synchronize()
        return (clock() - start) / count

    times: list[list[float]] = [[] for _ in calls]
    paces: list[list[float]] = [[] for _ in calls]  # of a reference call, beside each

    def beside(call: Callable[[], object], found: list[float], pace: list[float], again: int = 1) -> float:
        start = time.perf_counter()
        for _ in range(again):
            others.add_(1)
            found.append(timed(call))
            standard()  # its data back into the caches
            pace.append(timed(standard, max(round(min(min(found), longest) / shortest), 1)))
        return time.perf_counter() - start

    with torch.inference_mode():
        for call in (standard, *calls):
            call()
        shortest = min(timed(standard) for _ in range(10))
        start = time.perf_counter()
        took = [*map(beside, calls, times, paces)]
        share = sum(took) / len(took)  # a call takes at least that of a turn, as short ones scatter most
        again = [min(max(int(share / seconds), 1), _MOST_AGAIN) for seconds in took]
        rounds = int(_SECONDS / sum(map(operator.mul, took, again)))
        for _ in track(range(min(max(rounds, _LEAST_ROUNDS), _MOST_ROUNDS)), description, show):
            for each in zip(calls, times, paces, again, strict=True):
                beside(*each)
            if time.perf_counter() - start > 2 * _SECONDS:
                break
    shortest = min(map(min, paces))
    spread = statistics.median(seconds for pace in paces for seconds in pace) / shortest
    return Times([min(found) / min(pace) for found, pace in zip(times, paces, strict=True)], shortest, spread)
