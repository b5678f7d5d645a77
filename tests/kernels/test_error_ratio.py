"""The two-times rule: it sees wrong values and wrong arithmetic, and not the luck of a rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hscc_kernels.testing import error_ratio


def matrices(dtype: torch.dtype, rows: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(size, generator=generator).to(dtype) for size in ((rows, 72), (72, 12)))


def truncate(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Towards zero, as a conversion that only drops bits."""
    nearest = values.to(dtype)
    return torch.where(nearest.abs() > values.abs(), nearest.nextafter(torch.zeros_like(nearest)), nearest)


def test_wrong_values() -> None:
    a, b = matrices(torch.float32)
    low, high = a @ b, a.double() @ b.double()
    assert error_ratio(low, low, high) <= 0.5
    wrong = low.clone()
    wrong[0, 0] += 1e-5 * high.abs().max()
    assert error_ratio(wrong, low, high) > 1
    wrong[0, 0] = float("nan")
    assert error_ratio(wrong, low, high) == float("inf")
    assert error_ratio(low, wrong, high) == float("inf")
    assert error_ratio(low[:1], low, high) == float("inf")
    assert error_ratio(low.double(), low, high) == float("inf")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_wrong_arithmetic(dtype: torch.dtype) -> None:
    """Sums kept in 16 bits, and bits dropped at the end of each of two stages; right are sums in float32."""
    a, b = matrices(dtype)
    c = torch.randn(12, 20).to(dtype)
    high = a.double() @ b.double() @ c.double()
    low = (a @ b) @ c

    right = ((a.float() @ b.float()).to(dtype).float() @ c.float()).to(dtype)
    assert error_ratio(right, low, high) < 0.6

    dropped = truncate(truncate(a.float() @ b.float(), dtype).float() @ c.float(), dtype)
    assert error_ratio(dropped, low, high) > 1

    total = torch.zeros(64, 12, dtype=dtype)
    for k in range(72):
        total = (total.float() + a[:, k : k + 1].float() @ b[k : k + 1].float()).to(dtype)
    assert error_ratio((total.float() @ c.float()).to(dtype), low, high) > 1


def test_luck() -> None:
    """Sums in two orders, which differ by luck alone: of so few values the largest error varies more than twofold."""
    ratios, largest = [], []
    for seed in range(300):
        a, b = matrices(torch.float32, rows=20, seed=seed)
        order = torch.randperm(72, generator=torch.Generator().manual_seed(seed))
        low, other, high = a @ b, a[:, order] @ b[order], a.double() @ b.double()
        ratios.append(error_ratio(other, low, high))
        largest.append((other - high).abs().max() / (low - high).abs().max())
    assert max(largest) > 2
    assert max(ratios) <= 1
