"""HSCConv2d: the drop-in for ``nn.Conv2d`` that runs a packed plan."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from hscc_kernels import ClusterFactors, Geometry, PackedPlan, RegionFactors, lowrank_conv2d
from hscc_kernels.backward import padded_nhwc, windows_of
from hscc_kernels.layout import ANY

from .groups import Wide
from .padding import SAME, SameConv2d, around, padded, split_padding, stays_open

if TYPE_CHECKING:
    from typing import Self  # from Python 3.11 on

SIZES = 8  # other than the calibrated one whose region maps are kept
_INDEX = ("positions", "rows", "channels", "work", "clusters")


def objection(conv: nn.Module) -> str | None:
    """Why a module cannot become an :class:`HSCConv2d`, in a sentence; None when it can."""
    if type(conv) not in (nn.Conv2d, SameConv2d):
        return f"{type(conv).__name__} is not supported, only nn.Conv2d itself"
    if conv.groups != 1:
        return f"grouped convolution (groups={conv.groups}) is not supported"
    if not conv.weight.is_floating_point():
        return f"weight of {conv.weight.dtype} is not supported, only real floating-point ones"
    held = [*dict(conv.named_parameters()), *dict(conv.named_buffers()), *dict(conv.named_children())]
    if more := [name for name in held if not name.startswith(("weight", "bias"))]:
        return f"it holds more than weight and bias ({', '.join(more)}), which factors could not"
    return None


class HSCConv2d(nn.Module):
    """A hierarchical spatio-channel low-rank convolution.

    Made by :meth:`from_conv`. Factors ``v``, ``u`` and ``bias`` (R, O) are parameters, index tensors are buffers;
    shapes as in :class:`hscc_kernels.PackedPlan`. Takes and gives what the ``nn.Conv2d`` did: (N, C, H, W) or
    (C, H, W), any batch size. A forward is one op, one kernel, behind ``F.pad`` where padding is not symmetric zeros.
    An H x W other than the calibrated one works too: the region map is resized (nearest position) once and kept, for
    the last :data:`SIZES` sizes. A compiled graph does that in each call, unless :meth:`prepare` came before.
    ``torch.fx`` sees one call of the module. Backends: see ``hscc_kernels.lowrank_conv2d``.

    Of a grouped convolution (``wide``) the plan is that of one op on a wider map: :mod:`hscc.nn.groups`.

    ``strict``: regions stay as calibrated, and a size that would resize their map is a ValueError.
    """

    strict = False
    wide: Wide | None = None

    def __init__(
        self,
        plan: PackedPlan,
        bias: Tensor,
        *,
        pad: Sequence[int] = (0, 0, 0, 0),
        padding_mode: str = "zeros",
        activation: str = "none",
    ) -> None:
        """``pad`` and ``padding_mode`` as for ``F.pad``, or "same": what is done to the input before the op."""
        super().__init__()
        self.sizes = plan.sizes
        self._geometry, self._out_size = self.geometry, self.out_size = plan.geometry, plan.out_size  # the op's
        self.in_channels = plan.in_channels
        self.out_channels = plan.out_channels
        self.pad, self.padding_mode, self.activation = tuple(pad), padding_mode, activation
        if plan.v.is_floating_point():
            self.v = nn.Parameter(plan.v)
        else:  # no parameter: many ask the first one for the dtype of a model's inputs
            self.register_buffer("v", plan.v)
        self.u, self.bias = nn.Parameter(plan.u), nn.Parameter(bias)
        for name in _INDEX:
            self.register_buffer(name, getattr(plan, name))
        self._resized: OrderedDict[tuple[int, int], tuple[Tensor, Tensor]] = OrderedDict()  # positions, work by size

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, regions: Sequence[RegionFactors], v: Tensor, bias: Tensor, labels: Tensor):
        """Replaces ``conv`` by factors; copies every attribute of it or raises ValueError with the reason.

        Args:
            regions: the factors of each region; v: (q, D) their pool of rows, D ordered (kh, kw, C).
            bias: (R, O). labels: (Ho, Wo) region of each output position.
        """
        if reason := objection(conv):
            raise ValueError(reason)
        like = {"dtype": conv.weight.dtype, "device": conv.weight.device}
        padding, before = split_padding(conv)
        geometry = Geometry(conv.kernel_size, conv.stride, padding, conv.dilation)
        plan = PackedPlan.pack(v.cpu(), regions, labels.cpu(), geometry).to(**like)
        layer = cls(plan, bias.to(**like), pad=before, padding_mode=conv.padding_mode)
        return layer.requires_grad_(trainable(conv)).train(conv.training)

    @classmethod
    def dense(cls, conv: nn.Conv2d, out_size: tuple[int, int]):
        """``conv`` itself in this form: one region, one cluster without second stage."""
        if reason := objection(conv):
            raise ValueError(reason)
        outputs = torch.arange(conv.out_channels)
        regions = (RegionFactors(outputs, (ClusterFactors(outputs, 0, None),)),)
        labels = torch.zeros(out_size, dtype=torch.int64)
        return cls.from_conv(conv, regions, weight_rows(conv), dense_bias(conv)[None], labels)

    def widen_(self, wide: Wide | None) -> Self:
        """From now on the plan is that of a grouped convolution on such a map."""
        if wide is not None:
            self.wide, plan = wide, self.plan
            self.geometry, self.out_size = wide.narrow(self._geometry), wide.out_size(self._out_size)
            self.in_channels, self.out_channels = plan.in_channels * wide.groups, plan.out_channels * wide.groups
        return self

    def adopt_(self, other: HSCConv2d) -> Self:
        """All that is no number: padding, activation, groups, strictness, mode."""
        self.pad, self.padding_mode, self.activation = other.pad, other.padding_mode, other.activation
        self.strict = other.strict
        return self.widen_(other.wide).train(other.training)

    @property
    def plan(self) -> PackedPlan:
        """The plan for the calibrated size, on the layer's own tensors."""
        buffers = self._buffers  # at half the price of seven attributes
        return PackedPlan(self.v, self.u, *[buffers[name] for name in _INDEX], self.sizes)

    @property
    def groups(self) -> int:
        return self.wide.groups if self.wide else 1

    @property
    def kernel_size(self) -> tuple[int, int]:
        return self.geometry.kernel

    @property
    def stride(self) -> tuple[int, int]:
        return self.geometry.stride

    @property
    def dilation(self) -> tuple[int, int]:
        return self.geometry.dilation

    @property
    def padding(self) -> tuple[int, int] | str:
        """That of the convolution: (rows, columns), or "same" where the sides differ."""
        left, right, top, bottom = self.pad
        if self.padding_mode == SAME:
            return SAME
        if not any(self.pad):
            return self.geometry.padding
        return (top, left) if (left, top) == (right, bottom) else "same"

    def prepare(self, height: int, width: int) -> None:
        """Makes the layer ready for inputs of this size (before padding by ``padding_mode``)."""
        self.plan_of(height, width)

    def plan_of(self, height: int, width: int) -> PackedPlan:
        """The plan for an input of that size, which is kept; ValueError where the layer does not take it."""
        left, right, top, bottom = around(self.pad, self.padding_mode, self.geometry, height, width)
        return self._plan_for(height + top + bottom, (width + left + right) * self.groups)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, fx.Proxy):
            return called(self, x)
        if x.ndim == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        x = self.read(x)
        y = self._run(x, self._plan_for(x.shape[-2], x.shape[-1]))
        return y if self.wide is None else self.wide.written(y)

    def read(self, x: Tensor) -> Tensor:
        """What the op gets of an input (N, C, H, W)."""
        if any(self.pad) or self.padding_mode == SAME:
            x = padded(x, self.pad, self.padding_mode, self.geometry)
        if self.wide is None:
            return x
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (N, {self.in_channels}, H, W)")
        return self.wide.read(x)

    def _run(self, x: Tensor, plan: PackedPlan) -> Tensor:
        return lowrank_conv2d(x, plan, self.bias, activation=self.activation)

    def scale_rows_(self, rows: Tensor, factors: Tensor) -> None:
        """Multiplies these rows of ``v`` (n,) by as many factors."""
        self.v.data[rows] *= factors[:, None]

    def _plan_for(self, height: int, width: int) -> PackedPlan:
        """For what the op gets, of that size."""
        plan, size = self.plan, self._geometry.out_size(height, width)
        if self.strict and plan.regions > 1 and size != self._out_size:
            got = self.wide.out_size(size) if self.wide else size
            raise ValueError(
                f"x: got {height} x {width // self.groups}, of {got[0]} x {got[1]} outputs, expected one of "
                f"{self.out_size[0]} x {self.out_size[1]} as calibrated (strict)"
            )
        if stays_open(height, width):
            return self._open(plan, *size)
        if size == self._out_size:
            return plan
        if min(size) < 1:
            raise ValueError(f"x: got {height} x {width // self.groups}, expected at least the kernel's size")
        if size in self._resized:
            positions, work = self._resized[size]
        elif torch.compiler.is_compiling():  # made anew at each call
            positions, work = self._map(*size)
        else:
            with torch.inference_mode(False):  # they may be needed for gradients later
                made = _everywhere(plan, *size) if plan.regions == 1 else plan.resized(size, self._block)
            positions, work = self._resized[size] = made.positions, made.work
            if len(self._resized) > SIZES:
                self._resized.popitem(last=False)
        return PackedPlan(
            self.v, self.u, positions, self.rows, self.channels, work, self.clusters, (*self.sizes[:-2], *size)
        )

    @property
    def _block(self) -> int:
        """Columns of the op's output that are resized as one."""
        return self.wide.block if self.wide else 1

    def _map(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Positions and work for an output of the op of that size, by one node of a graph."""
        plan = self.plan
        length = plan.v.shape[1]
        return torch.ops.hscc.resized(plan.positions, plan.work, self.sizes, length, height, width, self._block)

    def _open(self, plan: PackedPlan, height: int, width: int) -> PackedPlan:
        """For an output of any size, as a graph has it."""
        if plan.regions > 1:
            positions, work = self._map(height, width)
            plan = plan._replace(positions=positions, work=work)
        else:  # by operators that need no Python where the graph runs
            plan = _everywhere(plan, height, width)
        return plan._replace(sizes=(*self.sizes[:-2], ANY, ANY))

    def _apply(self, fn, recurse=True):
        self._resized.clear()  # its tensors are no buffers, so a move to another device must not miss them
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        g = self.geometry
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={g.kernel}, stride={g.stride}, "
            f"padding={g.padding}, dilation={g.dilation}, regions={self.bias.shape[0]}, rows={self.v.shape[0]}"
            + (f", groups={self.groups}" if self.wide else "")
        )


def _everywhere(plan: PackedPlan, height: int, width: int) -> PackedPlan:
    """That of one region for an output of that size, row by row; its ``sizes`` are still the old ones."""
    positions = torch.arange(height * width, dtype=torch.int32, device=plan.v.device)
    count = torch.full((1, 1), height * width, dtype=torch.int32, device=plan.v.device)
    return plan._replace(positions=positions, work=torch.cat([plan.work[:, :2], count, plan.work[:, 3:]], 1))


def called(module: nn.Module, x: fx.Proxy) -> fx.Proxy:
    """One node of a traced graph: what a module does inside is not for ``torch.fx``."""
    return x.tracer.create_proxy("call_module", x.tracer.path_of_module(module), (x,), {})


def trainable(conv: nn.Module) -> bool:
    """Whether any parameter of it is; an effective weight, as of weight norm, may say otherwise."""
    return any(parameter.requires_grad for parameter in conv.parameters())


def weight_rows(conv: nn.Conv2d) -> Tensor:
    """(O, D) weight with D ordered (kh, kw, C)."""
    return conv.weight.detach().permute(0, 2, 3, 1).flatten(1)


def patches(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """(N, C, H, W) -> what each output of the convolution reads, (N, D, Ho, Wo), D ordered (kh, kw, C)."""
    padding, before = split_padding(conv)
    geometry = Geometry(conv.kernel_size, conv.stride, padding, conv.dilation)
    x = padded(x, before, conv.padding_mode, geometry)
    return windows_of(padded_nhwc(x, geometry), geometry).flatten(3).permute(0, 3, 1, 2)


def dense_bias(conv: nn.Conv2d) -> Tensor:
    """(O,) bias; zeros when there is none."""
    return conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
