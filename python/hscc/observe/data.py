"""The data that models are watched on, and the one way to watch some of their layers."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..progress import track
from . import distributed
from .values import here, kind

T = TypeVar("T")
AT_A_TIME = 32  # images of a batch, where the data are one tensor


@dataclass(frozen=True)
class Calibration:
    """Batches for models on one device: made once, handed to all that runs a model.

    Args:
        data: what can be read several times: batches that are a tensor, a tuple or list whose first item is the input,
            or a dict of keywords; or one tensor (N, C, H, W). Each rank of ``torch.distributed`` reads its own.
        device: that the inputs go to.
        seed: of what is drawn at random on the way.
        show: progress on standard error.
        adapter: called with a model and a batch, for batches of any other kind.
        argument: what messages call the data.
    """

    data: Iterable
    device: torch.device
    seed: int = 0
    show: bool = False
    adapter: Callable[[nn.Module, Any], Any] | None = None
    argument: str = "calibration"

    @classmethod
    def of(
        cls, model: nn.Module, data: Iterable, seed: int = 0, show: bool = False, adapter: Callable | None = None
    ) -> Calibration:
        """For ``model`` where it is."""
        device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        return cls(data, device, seed, show, adapter)

    def batches(self, stage: str | None = None) -> Iterator[Any]:
        """Inputs on the device, for :meth:`forward`: tensors, dicts of keywords, or what the adapter takes.

        A stage is one that is tracked.

        Raises TypeError for data or a batch of another kind, ValueError where there is no batch.
        """
        data = self.readable()
        empty = True
        for batch in data if stage is None else self.track(data, stage):
            empty = False
            yield self.inputs(batch)
        if empty:
            raise ValueError(f"{self.argument}: got no batch, expected at least one")

    def inputs(self, batch: Any) -> Any:
        """What :meth:`forward` takes of a batch, on the device."""
        if self.adapter is not None:
            return here(batch, self.device)
        first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if not isinstance(first, (Tensor, Mapping)) or _images_alone(batch):
            raise TypeError(
                f"{self.argument}: got a batch of {kind(batch)}, expected a tensor, a tuple or list that begins "
                "with one, or a dict of keywords; forward=lambda model, batch: ... is for any other"
            )
        return here(first, self.device)

    def first(self) -> Any:
        """The first batch, for what does not depend on the images."""
        return next(self.batches())

    def forward(self, model: nn.Module, batch: Any) -> Any:
        """What the model makes of one of the :meth:`batches`; of a dict it gets the keywords that it takes."""
        if self.adapter is not None:
            return self.adapter(model, batch)
        parameters = inspect.signature(model.forward).parameters.values()
        args, kwargs = ((), batch) if isinstance(batch, Mapping) else ((batch,), {})
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            kwargs = {p.name: kwargs[p.name] for p in parameters if p.name in kwargs}
        try:
            inspect.signature(model.forward).bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(
                f"{self.argument}: got a batch of {kind(batch)}, but the model's forward has {error}; "
                "forward=lambda model, batch: ... says how to call it"
            ) from None
        return model(*args, **kwargs)

    def run(self, model: nn.Module, stage: str) -> int:
        """One pass; the number of batches on this rank."""
        count = 0
        for batch in self.batches(stage):
            self.forward(model, batch)
            count += 1
        return count

    def track(self, items: Iterable[T], stage: str, of: int | None = None) -> Iterator[T]:
        """The items; see :func:`hscc.progress.track`."""
        return track(items, stage, self.show, of)

    def generator(self) -> torch.Generator:
        """Random numbers of this rank."""
        return torch.Generator().manual_seed(self.seed + distributed.rank())

    def readable(self) -> Iterable:
        """The data, or what is wrong with them."""
        data, wanted = (
            self.data,
            "expected data that can be read several times, such as a list of batches or a DataLoader",
        )
        if isinstance(data, Tensor):
            if data.ndim != 4:
                raise ValueError(f"{self.argument}: got a tensor of shape {tuple(data.shape)}, expected (N, C, H, W)")
            return data.split(AT_A_TIME)
        if isinstance(data, Iterator):
            raise TypeError(f"{self.argument}: got the one-shot iterator {type(data).__name__}, {wanted}")
        if isinstance(data, torch.utils.data.Dataset):
            raise TypeError(
                f"{self.argument}: got the dataset {type(data).__name__}, expected batches: DataLoader(it, 32)"
            )
        if isinstance(data, (str, bytes, Mapping)) or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
            raise TypeError(f"{self.argument}: got {type(data).__name__}, {wanted}")
        return data


@contextmanager
def watch(
    layers: Mapping[str, nn.Module],
    after: Callable[[str, Tensor, Any], Tensor | None] | None = None,
    before: Callable[[str, Tensor], None] | None = None,
) -> Iterator[None]:
    """In the block each call of a layer is seen: ``before(name, x)``, then ``after(name, x, y)``; x is its input.

    y is what the layer itself gives, before hooks of the user's. What ``after`` returns, if anything, takes its place.
    """
    handles = []
    try:
        for name, layer in layers.items():
            if before is not None:
                handles.append(layer.register_forward_pre_hook(_ahead(name, layer, before), with_kwargs=True))
            if after is not None:
                hook = _behind(name, layer, after)
                handles.append(layer.register_forward_hook(hook, with_kwargs=True, prepend=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluation(*models: nn.Module, gradients: bool = False) -> Iterator[None]:
    """Work that all ranks do, each alone, with models in evaluation mode; an error on one rank is raised on all.

    Compiled parts run eagerly, as hooks are not seen otherwise.
    """
    with (
        distributed.together(),
        torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext(),
        evaluation_mode(*models),
        torch.set_grad_enabled(gradients),
    ):
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


def _images_alone(batch: Any) -> bool:
    """Whether a batch is a list of images, of which the first would be taken for all."""
    alike = isinstance(batch, (tuple, list)) and len(batch) > 1 and all(isinstance(x, Tensor) for x in batch)
    return alike and all(x.ndim == 3 and len(x) == len(batch[0]) for x in batch)


def _ahead(name: str, layer: nn.Module, before: Callable) -> Callable:
    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if module is layer:  # what replaces a layer shares its hooks
            before(name, args[0] if args else kwargs["input"])

    return hook


def _behind(name: str, layer: nn.Module, after: Callable) -> Callable:
    def hook(module: nn.Module, args: tuple, kwargs: dict, y: Any) -> Tensor | None:
        return after(name, args[0] if args else kwargs["input"], y) if module is layer else None

    return hook
