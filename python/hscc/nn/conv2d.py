"""HSCConv2d: the drop-in for ``nn.Conv2d`` that runs a packed plan."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hscc_kernels import ClusterFactors, Geometry, PackedPlan, RegionFactors, lowrank_conv2d
from hscc_kernels.backward import padded_nhwc, windows_of

_INDEX = ("positions", "rows", "channels", "work", "clusters")


def objection(conv: nn.Module) -> str | None:
    """Why a module cannot become an :class:`HSCConv2d`, in a sentence; None when it can."""
    if type(conv) is not nn.Conv2d:
        return f"{type(conv).__name__} is not supported, only nn.Conv2d itself"
    if conv.groups != 1:
        return f"grouped convolution (groups={conv.groups}) is not supported"
    if not conv.weight.is_floating_point():
        return f"weight of {conv.weight.dtype} is not supported, only real floating-point ones"
    return None


class HSCConv2d(nn.Module):
    """A hierarchical spatio-channel low-rank convolution.

    Made by :meth:`from_conv`. Factors ``v``, ``u`` and ``bias`` (R, O) are parameters, index tensors are buffers;
    shapes as in :class:`hscc_kernels.PackedPlan`. Takes and gives what the ``nn.Conv2d`` did: (N, C, H, W) or
    (C, H, W), any batch size. A forward is one op, one kernel, behind ``F.pad`` where padding is not symmetric zeros.
    An H x W other than the calibrated one works too: the region map is resized (nearest position) once and kept; call
    :meth:`prepare` before ``torch.compile`` or ``torch.export`` for such a size. Backends: see
    ``hscc_kernels.lowrank_conv2d``.
    """

    def __init__(
        self,
        plan: PackedPlan,
        bias: Tensor,
        *,
        padding: Sequence[int] = (0, 0, 0, 0),
        padding_mode: str = "zeros",
        activation: str = "none",
    ) -> None:
        super().__init__()
        self.sizes, self.geometry, self.out_size = plan.sizes, plan.geometry, plan.out_size
        self.in_channels = plan.in_channels
        self.out_channels = plan.out_channels
        self.padding, self.padding_mode, self.activation = tuple(padding), padding_mode, activation
        self.v, self.u, self.bias = nn.Parameter(plan.v), nn.Parameter(plan.u), nn.Parameter(bias)
        for name in _INDEX:
            self.register_buffer(name, getattr(plan, name))
        self._resized: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # positions and work by output size

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
        padding, before = _split_padding(conv)
        geometry = Geometry(conv.kernel_size, conv.stride, padding, conv.dilation)
        plan = PackedPlan.pack(v.cpu(), regions, labels.cpu(), geometry).to(**like)
        layer = cls(plan, bias.to(**like), padding=before, padding_mode=conv.padding_mode)
        return layer.requires_grad_(conv.weight.requires_grad).train(conv.training)

    @classmethod
    def dense(cls, conv: nn.Conv2d, out_size: tuple[int, int]):
        """``conv`` itself in this form: one region, one cluster without second stage."""
        if reason := objection(conv):
            raise ValueError(reason)
        outputs = torch.arange(conv.out_channels)
        regions = (RegionFactors(outputs, (ClusterFactors(outputs, 0, None),)),)
        labels = torch.zeros(out_size, dtype=torch.int64)
        return cls.from_conv(conv, regions, weight_rows(conv), dense_bias(conv)[None], labels)

    @property
    def plan(self) -> PackedPlan:
        """The plan for the calibrated size, on the layer's own tensors."""
        buffers = self._buffers  # at half the price of seven attributes
        return PackedPlan(self.v, self.u, *[buffers[name] for name in _INDEX], self.sizes)

    def prepare(self, height: int, width: int) -> None:
        """Makes the layer ready for inputs of this size (before padding by ``padding_mode``)."""
        self._plan_for(height + self.padding[2] + self.padding[3], width + self.padding[0] + self.padding[1])

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        if any(self.padding):
            x = F.pad(x, self.padding, mode="constant" if self.padding_mode == "zeros" else self.padding_mode)
        plan = self._plan_for(x.shape[-2], x.shape[-1])
        return lowrank_conv2d(x, plan, self.bias, activation=self.activation)

    def _plan_for(self, height: int, width: int) -> PackedPlan:
        plan, size = self.plan, self.geometry.out_size(height, width)
        if size == self.out_size:
            return plan
        if size not in self._resized:
            if torch.compiler.is_compiling():
                raise RuntimeError(f"input of {height} x {width}: call prepare({height}, {width}) before compiling")
            if min(size) < 1:
                raise ValueError(f"x: got {height} x {width}, expected at least the kernel's size")
            resized = plan.mapped(_resize(region_labels(plan), size))
            self._resized[size] = resized.positions, resized.work
        (positions, work), sizes = self._resized[size], (*self.sizes[:-2], *size)
        return PackedPlan(self.v, self.u, positions, self.rows, self.channels, work, self.clusters, sizes)

    def _apply(self, fn, recurse=True):
        self._resized.clear()  # its tensors are no buffers, so a move to another device must not miss them
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        g = self.geometry
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={g.kernel}, stride={g.stride}, "
            f"padding={g.padding}, dilation={g.dilation}, regions={self.bias.shape[0]}, rows={self.v.shape[0]}"
        )


def region_labels(plan: PackedPlan) -> Tensor:
    """(Ho, Wo) int64 region of each output position."""
    labels = torch.empty(plan.positions.shape, dtype=torch.int64, device=plan.positions.device)
    for item in plan.work_items():
        labels[plan.positions[item.position_start : item.position_start + item.position_count].long()] = item.region
    return labels.view(plan.out_size)


def weight_rows(conv: nn.Conv2d) -> Tensor:
    """(O, D) weight with D ordered (kh, kw, C)."""
    return conv.weight.detach().permute(0, 2, 3, 1).flatten(1)


def patches(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """(N, C, H, W) -> what each output of the convolution reads, (N, D, Ho, Wo), D ordered (kh, kw, C)."""
    padding, before = _split_padding(conv)
    if any(before):
        x = F.pad(x, before, mode="constant" if conv.padding_mode == "zeros" else conv.padding_mode)
    geometry = Geometry(conv.kernel_size, conv.stride, padding, conv.dilation)
    return windows_of(padded_nhwc(x, geometry), geometry).flatten(3).permute(0, 3, 1, 2)


def dense_bias(conv: nn.Conv2d) -> Tensor:
    """(O,) bias; zeros when there is none."""
    return conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()


def _split_padding(conv: nn.Conv2d) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """(padding inside the kernel, padding before it as for ``F.pad``): the kernel knows symmetric zeros only."""
    if isinstance(conv.padding, str):
        spans = zip(conv.dilation, conv.kernel_size, strict=True)
        total = [d * (k - 1) if conv.padding == "same" else 0 for d, k in spans]
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        sides = [(p, p) for p in conv.padding]
    if conv.padding_mode == "zeros" and all(a == b for a, b in sides):
        return (sides[0][0], sides[1][0]), (0, 0, 0, 0)
    return (0, 0), (*sides[1], *sides[0])


def _resize(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest position of another size."""
    row, column = (
        ((torch.arange(new, device=labels.device) + 0.5) * old / new).long().clamp_max(old - 1)
        for new, old in zip(size, labels.shape, strict=True)
    )
    return labels[row[:, None], column[None, :]]
