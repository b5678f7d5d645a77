"""What a compressed model can do: other sizes, files, torch.fx, the FLOP counter, fine-tuning."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import hscc
import pytest
import torch
from hscc.nn.conv2d import SIZES
from torch import Tensor, fx, nn

from tests.hscc.users.networks import config, conv, network


def test_other_sizes_seen_in_inference_mode_can_be_trained_on(x) -> None:
    model = network()
    hscc.compress_(model, x, config())
    with torch.inference_mode():
        model(torch.randn(2, 3, 20, 20))
    model(torch.randn(2, 3, 20, 20)).sum().backward()
    assert model[0].v.grad is not None
    for size in range(17, 60):
        model(torch.randn(1, 3, size, size))
    assert len(model[0]._resized) == SIZES


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", ["hscc", "tucker2"])
def test_a_file_takes_the_fresh_models_dtype_and_device(x, tmp_path, dtype, method: str) -> None:
    model, path = network(), tmp_path / "small.safetensors"
    hscc.compress_(model, x, config(method=method))
    hscc.save(model.to(dtype), path)
    for fresh in (network(), network().to(dtype), network().to("meta")):
        kind = next(fresh.parameters())
        with pytest.warns(UserWarning, match="no-op") if kind.is_meta else nullcontext():
            hscc.load_(fresh, path)
        assert {(p.dtype, p.device) for p in fresh.parameters()} == {(kind.dtype, kind.device)}
        if not kind.is_meta:
            torch.testing.assert_close(
                fresh(x[0].to(kind)).double(), model(x[0].to(dtype)).double(), rtol=0.1, atol=0.05
            )


@pytest.mark.parametrize("dynamic", [None, True, False])
@pytest.mark.parametrize("gradients", [False, True])
def test_other_sizes_under_compile(x, dynamic: bool | None, gradients: bool) -> None:
    model = network()
    hscc.compress_(model, x, config())
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    with torch.set_grad_enabled(gradients):
        for size in (16, 20, 23, 16, 7):
            image = torch.randn(2, 3, size, size)
            torch.testing.assert_close(compiled(image), copy.deepcopy(model)(image))
    torch._dynamo.reset()


@pytest.mark.parametrize("size", [16, 20])
def test_the_flop_counter_agrees_with_the_report(x, size: int) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = network()
    report = hscc.compress_(model, x, config())
    assert isinstance(model[2], hscc.SqueezedConv2d)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(4, 3, size, size))
    found = counter.get_total_flops() - 4 * 2 * 16 * 3  # of the last linear layer
    assert found == 4 * report.flops if size == 16 else found > 4 * report.flops


def test_torch_fx_traces_the_result(x) -> None:
    model = network()
    hscc.compress_(model, x, config())
    traced = fx.symbolic_trace(model)
    torch.testing.assert_close(traced(x[0]), model(x[0]))
    assert [node.op for node in traced.graph.nodes].count("call_module") >= 7


class Block(nn.Module):
    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.relu, self.last = first, nn.ReLU(), conv(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.relu(self.first(x)))


class Branching(nn.Module):
    """What ``torch.fx`` cannot trace: it taps a container, and calls a layer of one block by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.relu, shared = network()[:4], nn.ReLU(), conv(16, 16)
        self.blocks = nn.ModuleList([Block(conv(16, 16)), Block(shared)])
        self.shared = shared

    def forward(self, x: Tensor) -> list[Tensor]:
        seen = []
        for layer in self.body:
            x = layer(x)
            seen.append(x)
        for block in self.blocks:
            x = block(x) if x.sum() > -1e9 else x
        return [*seen, self.shared(x)]


def test_fuse_says_what_it_could_not_reach(x) -> None:
    model = Branching()
    hscc.compress_(model, x, config(6))
    wanted = model(x[0])
    match = r"left what it could not look into: the model itself \("
    with pytest.warns(UserWarning, match=match) as told:
        fused = hscc.fuse_(model)
    assert "body (a container, whose parts may be called by themselves)" in str(told[0].message)
    assert set(fused) <= {"blocks.0.first", "blocks.0.first.conv"}
    assert len(fused) == 1
    torch.testing.assert_close(model(x[0]), wanted)


def test_finetuning_never_ends_worse_than_it_began(x) -> None:
    student, teacher = network(), network()
    student.load_state_dict(teacher.state_dict())
    hscc.compress_(student, x, config(1.2))
    before = copy.deepcopy(student.state_dict())
    report = hscc.finetune(student, teacher, x, epochs=2, rate=1.0)
    assert report.validation[0] == min(report.validation)
    assert report.best_epoch == 0
    assert all(torch.equal(value, student.state_dict()[key]) for key, value in before.items())
