"""The data that models are watched on, and the one way to watch some of their layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..progress import track
from . import distributed

T = TypeVar("T")


@dataclass(frozen=True)
class Calibration:
    """Batches for models on one device: made once, handed to all that runs a model.

    Args:
        data: what can be read several times: batches that are a tensor, a tuple or list whose first item is the input,
            or a dict of keywords. Each rank of ``torch.distributed`` reads its own.
        device: that the inputs go to.
        seed: of what is drawn at random on the way.
        show: bars on standard error.
        argument: what messages call the data.
    """

    data: Iterable
    device: torch.device
    seed: int = 0
    show: bool = False
    argument: str = "calibration"

    @classmethod
    def of(cls, model: nn.Module, data: Iterable, seed: int = 0, show: bool = False) -> Calibration:
        """For ``model`` where it is."""
        device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        return cls(data, device, seed, show)

    def batches(self, description: str = "") -> Iterator[Any]:
        """Inputs on the device, for :func:`forward`: tensors or dicts of keywords.

        Raises TypeError for an iterator or a batch of another kind, ValueError where there is no batch.
        """
        if isinstance(self.data, Iterator):
            raise TypeError(
                f"{self.argument}: got the one-shot iterator {type(self.data).__name__}, expected data that can be "
                "read several times, such as a list of batches or a DataLoader"
            )
        empty = True
        for batch in self.track(self.data, description):
            empty = False
            batch = batch[0] if isinstance(batch, (tuple, list)) else batch
            if isinstance(batch, Mapping):
                yield {key: value.to(self.device) for key, value in batch.items()}
            elif isinstance(batch, Tensor):
                yield batch.to(self.device)
            else:
                raise TypeError(
                    f"{self.argument}: got a batch of {type(batch).__name__}, expected a tensor, tuple or dict"
                )
        if empty:
            raise ValueError(f"{self.argument}: got no batch, expected at least one")

    def first(self) -> Any:
        """The first batch, for what does not depend on the images."""
        return next(self.quiet.batches())

    @property
    def quiet(self) -> Calibration:
        """The same without bars."""
        return Calibration(self.data, self.device, self.seed, False, self.argument)

    def run(self, model: nn.Module, description: str) -> int:
        """One pass; the number of batches on this rank."""
        count = 0
        for batch in self.batches(description):
            forward(model, batch)
            count += 1
        return count

    def track(self, items: Iterable[T], description: str) -> Iterator[T]:
        """The items, with a bar where they are shown."""
        return track(items, description, self.show)

    def generator(self) -> torch.Generator:
        """Random numbers of this rank."""
        return torch.Generator().manual_seed(self.seed + distributed.rank())


def forward(model: nn.Module, batch: Any) -> Any:
    """What the model makes of one of the :meth:`Calibration.batches`."""
    return model(**batch) if isinstance(batch, Mapping) else model(batch)


@contextmanager
def watch(
    layers: Mapping[str, nn.Module],
    after: Callable[[str, Tensor, Any], Tensor | None] | None = None,
    before: Callable[[str, Tensor], None] | None = None,
) -> Iterator[None]:
    """In the block each call of a layer is seen: ``before(name, x)``, then ``after(name, x, y)``; x is its input.

    What ``after`` returns, if anything, takes the place of the output y.
    """
    handles = []
    try:
        for name, layer in layers.items():
            if before is not None:
                handles.append(layer.register_forward_pre_hook(_ahead(name, before), with_kwargs=True))
            if after is not None:
                handles.append(layer.register_forward_hook(_behind(name, after), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluation(*models: nn.Module, gradients: bool = False) -> Iterator[None]:
    """Work that all ranks do, each alone, with models in evaluation mode; an error on one rank is raised on all."""
    with distributed.together(), evaluation_mode(*models), torch.set_grad_enabled(gradients):
        yield


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Every module gets its own mode back."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def images(t: Tensor) -> Tensor:
    """(C, H, W) or (N, C, H, W) as (N, C, H, W)."""
    return t if t.ndim == 4 else t.unsqueeze(0)


def _ahead(name: str, before: Callable) -> Callable:
    return lambda module, args, kwargs: before(name, args[0] if args else kwargs["input"])


def _behind(name: str, after: Callable) -> Callable:
    return lambda module, args, kwargs, y: after(name, args[0] if args else kwargs["input"], y)
