"""What a guard does to answers, and what it must not be put on."""

from __future__ import annotations

import asyncio

import pytest
import torch
from hscc.guard.guard import Guard
from hscc.serving.engine import Answer, Engine
from hscc.serving.errors import BadRequest, Failed, Foreign
from hscc.serving.guarding import Guarded
from hscc.serving.limits import Limits
from hscc.serving.models import Served
from torch import Tensor, nn

from .stand_ins import Brightness, Gate, image

FIRST, SECOND, DARK = image(1, 2), torch.cat([image(0), image(3), image(0.25)]), image(0.125)
LIMITS = Limits(batch=8, delay_ms=100)


class Minus(nn.Module):
    """The dense model: what it answers is negative."""

    def forward(self, x: Tensor) -> Tensor:
        return -x.mean((1, 2, 3))[:, None]


@pytest.fixture
def served() -> Served:
    return Served.of(Gate().eval(), image(0))


def ask(engine: Engine) -> list:
    """Three requests in one batch."""

    async def all_three() -> list:
        return await asyncio.gather(*map(engine.infer, (FIRST, SECOND, DARK)), return_exceptions=True)

    return asyncio.run(all_three())


def outputs(answer: Answer) -> list[float]:
    return answer.outputs["output"][:, 0].tolist()


def test_flag(start, served: Served) -> None:
    engine = start(served, LIMITS, guard=Guarded(Brightness()))
    answers = ask(engine)
    assert [outputs(answer) for answer in answers] == [[1, 1], [0, 3, 0.25], [0.125]]
    assert [answer.guard.tolist() for answer in answers] == [[1, 1], [0, 3, 0.25], [0.125]]
    assert [answer.flagged.tolist() for answer in answers] == [[True, True], [False, True, False], [False]]
    assert answers[0].guard.dtype == torch.float32
    assert engine.metrics.value("hscc_batch_images_count") == 1
    assert engine.metrics.value("hscc_flagged_images_total") == 3
    assert engine.metrics.value("hscc_images_total") == 6


def test_reject(start, served: Served) -> None:
    engine = start(served, LIMITS, guard=Guarded(Brightness(), "reject"))
    first, second, dark = ask(engine)
    assert isinstance(first, Foreign)
    assert isinstance(first, BadRequest)
    assert first.status == 422
    assert str(second) == "images: got 1 unlike those the model knows (index 1), expected images of its kind"
    assert outputs(dark) == [0.125]
    value = engine.metrics.value
    assert (value("hscc_requests_total", status="foreign"), value("hscc_requests_total", status="ok")) == (2, 1)
    assert (value("hscc_flagged_images_total"), value("hscc_images_total")) == (3, 1)


def test_dense(start, served: Served) -> None:
    """The flagged images only."""
    dense = Served.of(Minus().eval(), image(0), name="dense")
    answers = ask(start(served, LIMITS, guard=Guarded(Brightness(), "dense", dense)))
    assert [outputs(answer) for answer in answers] == [[-1, -1], [0, -3, 0.25], [0.125]]
    assert [answer.flagged.tolist() for answer in answers] == [[True, True], [False, True, False], [False]]


def test_a_request_of_several_passes(start, served: Served) -> None:
    guard = Brightness()
    engine = start(served, Limits(batch=2), guard=Guarded(guard))
    guard.seen = 0
    answer = engine.infer_sync(torch.cat([FIRST, SECOND]))
    assert answer.guard.tolist() == [1, 1, 0, 3, 0.25]
    assert guard.seen == 5


def test_no_score_is_foreign(start, served: Served) -> None:
    """And scores that are not one an image are no answer."""

    class Nothing:
        threshold = 0.5

        def __call__(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
            wrong = (x == 7).any()
            return model(x), torch.full((len(x) + int(wrong),), torch.nan)

    engine = start(served, guard=Guarded(Nothing()))
    assert engine.infer_sync(image(0)).flagged.tolist() == [True]
    with pytest.raises(Failed):
        engine.infer_sync(image(7))


def test_our_guard(start, net: nn.Module, data: list[Tensor]) -> None:
    """Its scores in a batch of strangers are those alone."""
    guard = Guard.fit(net, data)
    known, noise = data[0], 5 * torch.randn(8, *data[0].shape[1:])
    expected = [guard(net, x) for x in (known, noise)]
    engine = start(Served.of(net, known), Limits(batch=32, delay_ms=100), guard=Guarded(guard))

    async def both() -> list[Answer]:
        return await asyncio.gather(engine.infer(known), engine.infer(noise))

    for answer, (outputs, scores) in zip(asyncio.run(both()), expected, strict=True):
        torch.testing.assert_close(answer.outputs["output"], outputs.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(answer.guard, scores, rtol=1e-3, atol=1e-3)
        assert torch.equal(answer.flagged, scores > guard.threshold)
    assert engine.infer_sync(noise).flagged.all()


def test_what_does_not_fit(served: Served) -> None:
    with pytest.raises(ValueError, match="policy: got 'drop', expected 'flag', 'reject' or 'dense'"):
        Guarded(Brightness(), "drop")
    with pytest.raises(ValueError, match="dense: got none with the policy 'dense', expected one for 'dense' alone"):
        Guarded(Brightness(), "dense")
    with pytest.raises(ValueError, match="dense: got one with the policy 'flag'"):
        Guarded(Brightness(), "flag", served)
    other = Served.of(nn.Flatten().eval(), image(0))
    with pytest.raises(ValueError, match="dense: got a model of another signature, expected the served model's"):
        Engine(served, guard=Guarded(Brightness(), "dense", other))
