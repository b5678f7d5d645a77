"""ConvChain: several plain convolutions in the place of one; ``stage``: one of them."""

from __future__ import annotations

from torch import Tensor, nn

from .padding import SameConv2d


class ConvChain(nn.Sequential):
    """What a convolution becomes: several plain ``nn.Conv2d``; a class of its own, so that ``save`` sees it."""


def stage(like: nn.Conv2d, weight: Tensor, axes: tuple[bool, bool]) -> nn.Conv2d:
    """A convolution of ``weight`` with the stride, padding and dilation of ``like`` along ``axes``, plain elsewhere.

    Without bias; ``weight`` (O, C, kh, kw) takes the dtype and the device of the other.
    """

    def along(values: tuple[int, int], plain: int) -> tuple[int, int]:
        return tuple(value if own else plain for value, own in zip(values, axes, strict=True))

    conv = (SameConv2d if isinstance(like, SameConv2d) else nn.Conv2d)(
        weight.shape[1],
        weight.shape[0],
        tuple(weight.shape[2:]),
        along(like.stride, 1),
        like.padding if isinstance(like.padding, str) else along(like.padding, 0),
        along(like.dilation, 1),
        bias=False,
        padding_mode=like.padding_mode,
        device="meta",  # numbers would be drawn from the user's random generator
    )
    conv.weight = nn.Parameter(weight.to(like.weight).contiguous())
    return conv
