"""What is served: a model, what goes in and comes out, and where it is from."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.spec import ImageSpec
from ..io.checkpoint import read_metadata
from ..io.loading import load_model
from ..nn.chain import ConvChain
from ..nn.conv2d import HSCConv2d
from ..nn.fuse import fuse_
from ..nn.projection import SqueezedConv2d
from .packages import Package, open_onnx, open_package
from .signature import DATATYPES, TensorSpec, named

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
OURS = (HSCConv2d, SqueezedConv2d, ConvChain)
WHOLE = {".pt2": open_package, ".onnx": open_onnx}  # files that say all by themselves
STEP = 32  # pixels more in each direction show which sizes of the outputs follow the image's


@dataclass(frozen=True)
class Served:
    """A model that takes one tensor (n, C, H, W) and gives tensors with a row an image.

    Made by :meth:`load` or :meth:`of`, which fill in what belongs together.

    Args:
        module: in evaluation mode.
        kind: "compressed", "dense", "package" (AOTInductor), "program" (torch.export) or "onnx".
        digest: SHA-256 of the file, in hex; empty without one.
        images: how files become inputs, where that is known.
        example: (C, H, W) of the images to warm up with.
        batches: fewest and most images that the model itself takes at a time; None is no limit.
        device: the only one, by type, that a file was made for; None is any.
    """

    module: Callable[[Tensor], Any]
    name: str
    version: str
    kind: str
    digest: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    images: ImageSpec | None
    example: tuple[int, int, int]
    batches: tuple[int, int | None] = (1, None)
    device: str | None = None

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name: got {self.name!r}, expected letters, digits, '_', '-' and '.', at most 128")

    @classmethod
    def load(
        cls,
        path: str | Path,
        source: str | None = None,
        *,
        name: str | None = None,
        any_size: bool = False,
        fuse: bool = True,
    ) -> Served:
        """A weights file (dense or compressed), or by its suffix an ONNX file, or a .pt2: package or exported program.

        A .pt2 file holds code that runs here: load none of people you would not take a program from.

        Args:
            source: ``file.py:function`` that builds the network; weights files need it, others have their own.
            name: the file's without its suffix, by default.
            any_size: other H x W than the image spec's are answered, too.
            fuse: faster, by :func:`hscc.fuse_`; False for a guard that looks at what convolutions give (``hscc.Guard``
                looks at what they take, which stays).

        Raises:
            FileNotFoundError, ValueError, TypeError: a missing, damaged or unfitting file, or no ``source``.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"model: got {str(path)!r}, expected a file")
        name, digest = name or path.stem, hashlib.sha256(path.read_bytes()).hexdigest()
        if path.suffix in WHOLE:
            return replace(_of_package(WHOLE[path.suffix](path), name), digest=digest)
        if source is None:
            raise ValueError(f"source: got none for {str(path)!r}, expected file.py:function that builds the network")
        module, images = load_model(source, path)
        module = module.to(memory_format=torch.channels_last)
        if fuse:
            fuse_(module)
        example = torch.zeros(2, images.channels, *images.size, dtype=_dtype(module))
        served = cls.of(module, example, images=images, any_size=any_size, name=name)
        return replace(served, digest=digest, kind="compressed" if "hscc" in read_metadata(path) else "dense")

    @classmethod
    def of(
        cls,
        module: nn.Module,
        example: Tensor,
        *,
        images: ImageSpec | None = None,
        any_size: bool = False,
        name: str = "model",
    ) -> Served:
        """A module in evaluation mode, by what it makes of ``example`` (n, C, H, W) on the CPU; no file."""
        if example.ndim != 4:
            raise ValueError(f"example: got {tuple(example.shape)}, expected (n, C, H, W)")
        if getattr(module, "training", False):
            raise ValueError("module: got one in training mode, expected model.eval()")
        channels, height, width = example.shape[1:]
        outputs = _shapes(module, example.expand(2, -1, -1, -1) if len(example) == 1 else example)
        size = (height, width)
        if any_size:
            size = (-1, -1)
            larger = _shapes(module, example.new_zeros(2, channels, height + STEP, width + STEP))
            outputs = {name: _common(shape, larger[name]) for name, shape in outputs.items()}
        return cls(
            module=module,
            name=name,
            version="1",
            kind="compressed" if any(isinstance(m, OURS) for m in module.modules()) else "dense",
            digest="",
            inputs=(TensorSpec("input", DATATYPES[example.dtype], (-1, channels, *size)),),
            outputs=tuple(TensorSpec(name, dtype, (-1, *shape)) for name, (dtype, shape) in outputs.items()),
            images=images,
            example=(channels, height, width),
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes in the order of the outputs; empty where the file has none."""
        return self.images.classes if self.images else ()

    def on(self, device: torch.device) -> Callable[[Tensor], Any]:
        """The module on that device; a copy, but for the CPU. A package stays where it was compiled for."""
        if device.type == "cpu" or not isinstance(self.module, nn.Module):
            return self.module
        return copy.deepcopy(self.module).to(device)

    @property
    def layout(self) -> torch.memory_format:
        """How the first convolution wants its input; our kernels take it as loaders give it."""
        modules = self.module.modules() if isinstance(self.module, nn.Module) else ()
        first = next((m for m in modules if isinstance(m, (nn.Conv2d, *OURS))), None)
        last = isinstance(first, nn.Conv2d) and first.weight.is_contiguous(memory_format=torch.channels_last)
        return torch.channels_last if last else torch.contiguous_format


def _of_package(package: Package, name: str) -> Served:
    return Served(
        module=package.run,
        name=name,
        version="1",
        kind=package.kind,
        digest="",
        inputs=package.inputs,
        outputs=package.outputs,
        images=package.images,
        example=package.example,
        batches=package.batches,
        device=package.device,
    )


def _shapes(module: nn.Module, x: Tensor) -> dict[str, tuple[str, tuple[int, ...]]]:
    """(datatype, shape of one row) of each output; TypeError where an output has not a row for each image."""
    with torch.inference_mode():
        outputs = named(module(x))
    for name, one in outputs.items():
        if one.ndim < 1 or len(one) != len(x) or one.dtype not in DATATYPES:
            got = f"{one.dtype} {tuple(one.shape)}"
            raise TypeError(f"model: got {name} {got} for {len(x)} images, expected a row an image")
    return {name: (DATATYPES[one.dtype], tuple(one.shape[1:])) for name, one in outputs.items()}


def _common(a: tuple[str, tuple[int, ...]], b: tuple[str, tuple[int, ...]]) -> tuple[str, tuple[int, ...]]:
    """-1 where two shapes differ."""
    return a[0], tuple(m if m == n else -1 for m, n in zip(a[1], b[1], strict=True))


def _dtype(module: nn.Module) -> torch.dtype:
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
