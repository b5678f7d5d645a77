"""The model on one device: images on the CPU go in, outputs and scores on the CPU come out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .graphs import Graphs
from .guarding import Guarded
from .limits import Limits
from .models import Served
from .signature import named

Result = tuple[dict[str, Tensor], Tensor | None]  # outputs by name, scores


class Runner:
    """For one thread: the one that calls :meth:`warm` calls it."""

    def __init__(self, model: Served, device: torch.device, guarded: Guarded | None, limits: Limits) -> None:
        self.device, self.guarded = device, guarded
        self._model, self._limits = model, limits
        self._least, most = model.batches
        self._most = limits.batch if most is None else min(limits.batch, most)
        self._most = max(self._most, self._least)
        self._graphs: Graphs | None = None

    def warm(self) -> None:
        """Places the model, and runs every batch size once on blank images; on a GPU it captures their graphs."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self._module, self._layout = self._model.on(self.device), self._model.layout
        dense = self.guarded.dense if self.guarded else None
        self._dense = dense.on(self.device) if dense else None
        if self.device.type == "cuda" and -1 not in self._model.inputs[0].shape[1:]:
            self._graphs = Graphs(self._forward)  # of other sizes a layer may drop what a graph still reads
        sizes = {min(max(size, self._least), self._most) for size in self._limits.sizes}
        for size in sorted(sizes, reverse=True):  # the largest first: its memory serves the others
            blank = torch.zeros(size, *self._model.example, dtype=self._model.inputs[0].torch_dtype)
            with torch.inference_mode():
                self([blank])
                if self._dense is not None:
                    self._dense(self._to_device([blank], size))

    @torch.inference_mode()
    def __call__(self, parts: Sequence[Tensor]) -> Result:
        """Of images (n_i, C, H, W) of one shape, all rows in their order; more than a batch in several passes."""
        if sum(map(len, parts)) <= self._most:
            return self._pass(parts)
        chunks = [self._pass([x]) for x in torch.cat(tuple(parts)).split(self._most)]
        outputs = {name: torch.cat([own[name] for own, _ in chunks]) for name in chunks[0][0]}
        scores = None if chunks[0][1] is None else torch.cat([scores for _, scores in chunks])
        return outputs, scores

    def passes(self, images: int) -> list[int]:
        """The images of each pass that so many take."""
        return [min(self._most, images - done) for done in range(0, images, self._most)]

    def healthy(self) -> bool:
        """False where the device answers no more, as after an illegal access on a GPU."""
        try:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        except RuntimeError:
            return False
        return True

    def _pass(self, parts: Sequence[Tensor]) -> Result:
        n = sum(map(len, parts))
        x = self._to_device(parts, self._padded(n))
        outputs, scores = self._forward(x) if self._graphs is None else self._graphs(x)
        for name, one in outputs.items():
            if len(one) != len(x):
                raise TypeError(f"model: got {len(one)} rows in {name} for {len(x)} images, expected a row an image")
        outputs = {name: one[:n] for name, one in outputs.items()}
        scores = None if scores is None else scores[:n]
        if self._dense is not None:
            outputs = self._replaced(outputs, scores, x)
        return self._to_host(outputs, scores)

    def _forward(self, x: Tensor) -> Result:
        return (named(self._module(x)), None) if self.guarded is None else self.guarded.run(self._module, x)

    def _replaced(self, outputs: dict[str, Tensor], scores: Tensor, x: Tensor) -> dict[str, Tensor]:
        """The flagged rows as the dense model has them."""
        rows = self.guarded.flags(scores).nonzero()[:, 0]
        if not len(rows):
            return outputs
        own = named(self._dense(x[rows]))
        return {name: one.index_copy(0, rows, own[name]) for name, one in outputs.items()}

    def _padded(self, n: int) -> int:
        """Graphs and programs of a fixed batch know some sizes only."""
        n = max(n, self._least)
        return n if self._graphs is None else min(max(1 << (n - 1).bit_length(), self._least), self._most)

    def _to_device(self, parts: Sequence[Tensor], size: int) -> Tensor:
        n, pinned = sum(map(len, parts)), self.device.type == "cuda"
        if size == n and not pinned:
            x = parts[0] if len(parts) == 1 else torch.cat(tuple(parts))
            return x.contiguous(memory_format=self._layout)
        x = torch.empty(size, *parts[0].shape[1:], dtype=parts[0].dtype, memory_format=self._layout, pin_memory=pinned)
        torch.cat(tuple(parts), out=x[:n])
        x[n:] = 0
        return x.to(self.device, non_blocking=True)

    def _to_host(self, outputs: dict[str, Tensor], scores: Tensor | None) -> Result:
        if self.device.type == "cpu":
            return outputs, scores
        names = {**outputs, **({} if scores is None else {None: scores})}
        host = {
            name: torch.empty(one.shape, dtype=one.dtype, pin_memory=True).copy_(one, non_blocking=True)
            for name, one in names.items()
        }
        torch.cuda.current_stream(self.device).synchronize()
        return {name: host[name] for name in outputs}, host.get(None)
