"""Calibration on two processes against one that sees all the data; run as a script, this file is one of the two."""

from __future__ import annotations

import copy
import datetime
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hscc
import pytest
import torch
from hscc.maths import regions
from hscc.maths.moments import Moments
from hscc.nn.surgery import Student
from hscc.observe import calibrate, sensitivity
from hscc.observe.data import Calibration
from hscc.observe.pairs import Pairs
from torch import Tensor, nn


class Net(nn.Module):
    """``rare`` runs only on batches of more than eight images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 5, 2, 2), nn.Conv2d(16, 12, 3)
        self.rare = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.second(self.rare(x) if len(x) > 8 else x)


def case() -> tuple[Net, list[Tensor]]:
    """The same model and six batches in every process."""
    torch.manual_seed(0)
    images = nn.functional.interpolate(torch.randn(52, 3, 6, 6), size=(24, 24), mode="bilinear")
    images[..., :5] = 0
    return Net().eval(), list(images.split([8, 8, 8, 8, 12, 8]))


def sizes() -> list[Tensor]:
    """Batches of which the first two, those of rank 0, are smaller."""
    data = case()[1]
    return [x[..., :16, :16] for x in data[:2]] + data[2:]


def moments(model: Net, data: list[Tensor], count: int = 4) -> dict:
    """Profiles, moments in so many regions, and moments of a disturbed model against this one."""
    layers = dict(model.named_children())
    profiles = calibrate.profile(model, Calibration.of(model, data), layers)
    cells = {name: regions.split(p, "grid", count, 0) for name, p in profiles.items()}
    begin = {name: (cells[name].of_positions("cpu"), cells[name].means(p)) for name, p in profiles.items()}
    empty = {name: Moments.empty(*given) for name, given in begin.items()}
    student = Student(model, {"first": ("first",)})
    student.replace("first", copy.deepcopy(model.first))
    student.modules["first"].weight.data *= 1.1
    pair = Moments.empty(*begin["second"], width=16)
    with Pairs(student, Calibration.of(model, data), {"second": model.second}, 2**30) as pairs:
        pairs.visit("second", 1, lambda x, y, _: pair.add(x[..., 1:-1, 1:-1], y))
    calibrate.sum_({"second": pair})
    about = {name: (p.mean().mean(0), torch.ones(len(p.total))) for name, p in profiles.items()}
    inputs, outers = calibrate.second_moments(model, Calibration.of(model, data), layers, about)
    into = {name: torch.eye(layer.out_channels) for name, layer in layers.items()}
    calibrate.moments(model, Calibration.of(model, data), layers, empty, into)
    return {"profiles": profiles, "moments": {**empty, "pair": pair}, "inputs": inputs, "outers": outers}


def compressed(data: list[Tensor], **options) -> Net:
    model = case()[0]
    hscc.compress_(model, data, hscc.Config(hscc.flops(3), **options))
    return model


def outputs(model: Net) -> Tensor:
    """On all images, batch by batch."""
    with torch.no_grad():
        return torch.cat([model(x) for x in case()[1]])


def message(call: Callable, *args) -> str:
    try:
        call(*args)
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def work(folder: Path, rank: int) -> None:
    torch.distributed.init_process_group(
        "gloo", f"file://{folder / 'store'}", datetime.timedelta(seconds=20), world_size=2, rank=rank
    )
    model, data = case()
    part = [data[:2], data[2:]][rank]
    messages = {
        "empty": message(moments, model, [part, []][rank]),
        "infinite": message(moments, model, [[*part, part[0] / 0], part][rank]),
        "regions": message(moments, model, part, 2 + rank),
    }
    layers = {"second": model.second}
    one = Calibration.of(model, data[:1])
    noise = [sensitivity.measure(model, one, layers, {"second": 100})["second"].gram for _ in range(2)]
    weights, same = compressed(part).state_dict(), outputs(compressed(part, sensitivity=False))
    result = {"messages": messages, "noise": noise, "weights": weights, "outputs": same, **moments(model, part)}
    result["sizes"] = moments(model, (sizes()[:2], sizes()[2:])[rank])
    torch.save(result, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What each of two processes found; a hang is an error."""
    folder = tmp_path_factory.mktemp("ranks")
    started = [
        subprocess.Popen([sys.executable, __file__, folder, str(rank)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        for process in started:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in started:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def sums(found: dict) -> dict[str, Tensor]:
    """All that is added up."""
    both = {f"{n} {part}": getattr(p, part) for n, p in found["profiles"].items() for part in ("total", "square")}
    both |= {f"{name} inputs": seen.outer for name, seen in found["inputs"].items()}
    both |= {f"{name} outer": outer for name, outer in found["outers"].items()}
    return both | {f"{name} {i}": t for name, m in found["moments"].items() for i, t in enumerate(m.sums)}


def test_ranks_agree_bitwise(ranks) -> None:
    first, second = ranks
    for one, other in ((sums(first), sums(second)), (first["weights"], second["weights"])):
        assert list(one) == list(other)
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_sums_are_those_of_all_the_data(ranks) -> None:
    """The float32 outputs are the same; float64 sums of them in another order differ by some 1e-16 of their terms."""
    alone = moments(*case())
    expected, found = sums(alone), sums(ranks[0])
    assert found.keys() == expected.keys()
    for key, total in found.items():
        scale = expected[key].abs().max().item()
        torch.testing.assert_close(total, expected[key], rtol=0, atol=1e-12 * scale, msg=key)
    for name, profile in alone["profiles"].items():
        other = ranks[0]["profiles"][name]
        assert (other.size, other.images, other.calls) == (profile.size, profile.images, profile.calls)


def test_images_of_another_size_on_each_rank(ranks) -> None:
    """All positions become one, after the sums of some maps were rounded or before."""
    alone, found = moments(case()[0], sizes()), ranks[0]["sizes"]
    for name, profile in alone["profiles"].items():
        other = found["profiles"][name]
        assert other.pooled == (name != "rare")  # which runs on the larger ones alone
        assert (other.size, other.images, other.rows) == (profile.size, profile.images, profile.rows)
        torch.testing.assert_close(other.std(), profile.std(), rtol=1e-5, atol=1e-6)
    for name, sums in alone["moments"].items():
        for got, wanted in zip(found["moments"][name].region(0), sums.region(0), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_compression_is_that_of_all_the_data(ranks) -> None:
    """As functions, for factors may turn among directions of equal gain; the sensitivity's noise is another by rank."""
    alone = outputs(compressed(case()[1], sensitivity=False))
    torch.testing.assert_close(ranks[0]["outputs"], alone, rtol=1e-4, atol=1e-5)


def test_each_rank_has_noise_of_its_own(ranks) -> None:
    """The same images on both ranks would count twice with the same noise; a second look gives the same."""
    model, data = case()
    batch = Calibration.of(model, data[:1])
    alone = sensitivity.measure(model, batch, {"second": model.second}, {"second": 100})["second"].gram
    (one, again), (other, _) = (found["noise"] for found in ranks)
    assert torch.equal(one, again)
    assert torch.equal(one, other)
    assert not torch.allclose(one, 2 * alone, rtol=0.01)


@pytest.mark.parametrize(
    ("case", "texts"),
    [
        ("empty", ["calibration: got no batch, expected at least one"] * 2),
        ("infinite", ["layer 'first': got NaN or infinite activations"] * 2),
        ("regions", [f"got other regions on rank {rank}" for rank in (1, 0)]),
    ],
)
def test_an_error_on_one_rank_is_raised_on_all(ranks, case: str, texts: list[str]) -> None:
    told = [found["messages"][case] for found in ranks]
    assert all(re.search(text, message) for text, message in zip(texts, told, strict=True)), told
    if case == "empty":
        assert told[0].startswith("RuntimeError: rank 1: ValueError")
        assert told[1].startswith("ValueError")


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))
