"""CUDA graphs: a forward pass of each batch size is recorded once and replayed. Written without a GPU to try it on."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

log = logging.getLogger("hscc.serving")
WARM = 3  # passes before a capture: libraries choose kernels and allocate in the first ones

Result = tuple[dict[str, Tensor], Tensor | None]


class Graphs:
    """Calls ``forward`` on (n, C, H, W) by a graph for each shape; as it is where a capture failed.

    What a call gives is overwritten by the next call of that shape.
    """

    def __init__(self, forward: Callable[[Tensor], Result]) -> None:
        self._forward = forward
        self._graphs: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor, Result]] = {}
        self._pool: tuple | None = None
        self._capturable = True

    def __call__(self, x: Tensor) -> Result:
        shape = tuple(x.shape)
        if shape not in self._graphs and not self._capture(x):
            return self._forward(x)
        graph, held, result = self._graphs[shape]
        held.copy_(x, non_blocking=True)
        graph.replay()
        return result

    def _capture(self, x: Tensor) -> bool:
        if not self._capturable:
            return False
        held, stream = x.clone(), torch.cuda.Stream(x.device)
        stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM):
                self._forward(held)
        torch.cuda.current_stream(x.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):  # others may warm up, too
                result = self._forward(held)
        except RuntimeError as error:
            log.warning("no CUDA graph, as the model or its guard cannot be captured: %s", error)
            self._capturable = False
            return False
        self._pool = self._pool or graph.pool()
        self._graphs[tuple(x.shape)] = graph, held, result
        return True
