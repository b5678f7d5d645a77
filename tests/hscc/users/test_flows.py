"""What PyTorch's own tools do with a compressed network; as a script, this file is one of two training processes."""

from __future__ import annotations

import copy
import datetime
import gc
import io
import subprocess
import sys
from pathlib import Path

import hscc
import pytest
import torch
import torch.nn.functional as F
from hscc.nn.forms import Spread
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel


def network() -> nn.Sequential:
    body = nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 32, 3, padding=1)
    tail = nn.ReLU(), nn.ConvTranspose2d(32, 16, 2, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    return nn.Sequential(*body, *tail).eval()


def case() -> tuple[nn.Sequential, Tensor, Tensor]:
    """(compressed network, eight images, their labels), the same in every process."""
    torch.manual_seed(0)
    model, images = (
        network(),
        F.interpolate(torch.randn(32, 1, 8, 8), size=16).repeat(1, 3, 1, 1),
    )  # grey, so that inputs are squeezed
    hscc.compress_(model, images, hscc.Config(hscc.flops(5), regions=4))
    kinds = {type(module) for module in model.modules()}
    assert kinds >= {hscc.HSCConv2d, hscc.SqueezedConv2d, Spread}, kinds
    return model, images[:8], torch.arange(8) % 4


@pytest.fixture(scope="module")
def made() -> tuple[nn.Sequential, Tensor, Tensor]:
    return case()


def gradients(model: nn.Module, x: Tensor, labels: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(F.cross_entropy(model(x), labels), list(model.parameters()), allow_unused=True))


@torch.no_grad()
def test_copies_and_files(made, tmp_path) -> None:
    model, x, _ = made
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    torch.save(model, tmp_path / "whole.pt")
    assert torch.equal(torch.load(tmp_path / "whole.pt", weights_only=False)(x), expected)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other(x), expected)
    buffer = io.BytesIO()
    torch.save(network().state_dict(), buffer)
    with pytest.raises(RuntimeError, match="Missing key"):  # dense weights do not fit silently
        other.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))


def test_functional_calls_and_vmap(made) -> None:
    """Not ``torch.func.grad``: PyTorch has it for no operator that is registered with ``torch.library``."""
    model, x, labels = made
    parameters = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    F.cross_entropy(torch.func.functional_call(model, parameters, (x,)), labels).backward()
    for given, wanted in zip(parameters.values(), gradients(model, x, labels), strict=True):
        assert (given.grad is None) == (wanted is None)
        torch.testing.assert_close(given.grad, wanted)
    changed = {**parameters, "8.bias": parameters["8.bias"] + 1}
    torch.testing.assert_close(torch.func.functional_call(model, changed, (x,)), model(x) + 1)
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(lambda x: model(x[None])[0])(x), model(x))


def test_checkpointed_activations(made) -> None:
    from torch.utils.checkpoint import checkpoint_sequential

    model, x, labels = made
    expected = gradients(model, x, labels)
    got = gradients(lambda_module(lambda x: checkpoint_sequential(model, 3, x, use_reentrant=False), model), x, labels)
    torch.testing.assert_close(got, expected)


def lambda_module(forward, model: nn.Module) -> nn.Module:
    """The model's parameters under another forward."""
    module = nn.Module()
    module.model, module.forward = model, forward
    return module


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@torch.no_grad()
def test_dtypes_autocast_and_layouts(made, dtype: torch.dtype) -> None:
    model, x, _ = made
    expected = model(x)
    other = copy.deepcopy(model).to(dtype)
    got = other(x.to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.02)
    torch.testing.assert_close(other(x.to(dtype, memory_format=torch.channels_last)), got, rtol=0.02, atol=0.01)
    torch.testing.assert_close(copy.deepcopy(model).to(memory_format=torch.channels_last)(x), expected)
    if dtype == torch.bfloat16:
        with torch.autocast("cpu", dtype):
            torch.testing.assert_close(model(x).float(), expected, rtol=0.05, atol=0.02)


@torch.no_grad()
def test_compiled_and_exported_whole(made) -> None:
    model, x, _ = made
    expected = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(model, (x,), dynamic_shapes=(batch,))
    for images in (x, x[:1], torch.cat([x, x])):
        torch.testing.assert_close(program.module()(images), model(images))
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_train_as_one_does(made, kind: str, tmp_path) -> None:
    command = [sys.executable, __file__, kind, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    told = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    model, x, labels = case()
    expected = dict(zip(dict(model.named_parameters()), gradients(model, x, labels), strict=True))
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    assert found.keys() == {name for name, gradient in expected.items() if gradient is not None}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def trained(kind: str, folder: Path, rank: int) -> None:
    """A step on this rank's half of the images; rank 0 writes the gradients."""
    torch.set_num_threads(1)
    model, x, labels = case()  # before there is a group, over which calibration would sum
    store, patience = torch.distributed.FileStore(str(folder / "store"), 2), datetime.timedelta(seconds=120)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=patience)
    if kind == "ddp":
        wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    else:
        for layer in model:
            if isinstance(layer, (hscc.HSCConv2d, hscc.SqueezedConv2d, Spread)):
                fully_shard(layer)
        wrapped = fully_shard(model)
    F.cross_entropy(wrapped(x[4 * rank : 4 * rank + 4]), labels[4 * rank : 4 * rank + 4]).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found = {name: grad.full_tensor() if hasattr(grad, "full_tensor") else grad for name, grad in grads.items()}
    if rank == 0:
        torch.save(found, folder / "gradients.pt")
    torch.distributed.barrier()
    del wrapped  # a reducer that outlives its group waits in its destructor for a thread that waits for the GIL
    gc.collect()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    trained(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
