"""What becomes of one network: compressed, compiled, exported, each compared with the network before it."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import hscc
import torch
from hscc.report import Report
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..networks.models import settled
from ..networks.sources import pictures
from .networks import NETWORKS, OWN, Network
from .packages import version

REDUCTIONS = (2.0, 1.5, 1.25, 1.1, 1.05)  # the first that a network can have
CALIBRATION, UNSEEN, BATCH = 16, 8, 8  # images
DECAY = 1.0  # of the weights' singular values
TOLERANCE = 1e-4  # of float32 outputs' largest error, relative to the largest output
Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Check:
    """Whether a form of the compressed network gives its outputs: the largest error relative to the largest output.

    ``told`` is the reason where there is none, ``dense`` whether the dense network fails alike; ``note`` qualifies.
    """

    works: bool
    error: float | None = None
    told: str = ""
    note: str = ""
    dense: bool = False


@dataclass(frozen=True)
class Result:
    """Of a network. ``outcome`` is "compressed", "refused" (``told`` says why) or "failed" (a defect).

    FLOPs are of one image, over all layers of the report; ``reasons`` counts the layers left, by what is said of each.
    ``error`` is of the outputs on unseen images, ``error_images`` the same relative to how they differ from image to
    image; norms over all outputs.
    """

    name: str
    source: str
    outcome: str
    told: str = ""
    reduction: float | None = None
    layers: int = 0
    taken: int = 0
    dense_flops: int = 0
    taken_flops: int = 0
    flops: int = 0
    reasons: dict[str, list[int]] = field(default_factory=dict)  # layers, FLOPs
    error: float | None = None
    error_images: float | None = None
    compile: Check | None = None
    export: Check | None = None
    onnx: Check | None = None


def check(name: str, backend: str = "inductor", network: Network | None = None, images: int = CALIBRATION) -> Result:
    """Builds, compresses on so many images, compiles (with this backend) and exports a network.

    What goes wrong on the way is in the result, but for a network that cannot be built or run at all.
    """
    network = network or NETWORKS[name]
    source = "" if network.package == OWN else f"{network.package} {version(network.package)}"
    result = {"name": name, "source": source}
    torch.manual_seed(0)
    seen = [*batches(network, images)]
    dense, unseen = settled(network.build(), seen, DECAY).requires_grad_(True), next(batches(network, UNSEEN, 1))
    try:
        model, report, reduction = compressed(dense, seen)
    except (TypeError, ValueError) as error:
        told = str(error)
        clear = "\n" not in told and "got" in told and "expected" in told
        return Result(**result, outcome="refused" if clear else "failed", told=told)
    except Exception as error:
        return Result(**result, outcome="failed", told=_told(error))
    found, wanted = outputs(model, unseen), outputs(dense, unseen)
    small = tuple(x[:2] for x in unseen)
    ways = {"compile": compiled(backend), "export": exported, "onnx": in_onnx}
    return Result(
        **result, outcome="compressed", reduction=reduction, **_layers(report),
        error=_distance(found, wanted, wanted),
        error_images=_distance(found, wanted, [w - w.mean(0, keepdim=True) for w in wanted]),
        **{way: compared(form, model, dense, small) for way, form in ways.items()},
    )  # fmt: skip


def batches(network: Network, count: int = CALIBRATION, seed: int = 0) -> Iterator[Inputs]:
    """Made-up images, a tuple of them a batch."""
    several = [pictures(count, network.size, 100 * i + seed)[:, : network.channels] for i in range(network.inputs)]
    yield from zip(*(images.split(BATCH) for images in several), strict=True)


def compressed(dense: nn.Module, images: Sequence[Inputs]) -> tuple[nn.Module, Report, float]:
    """(the model, its report, the first of REDUCTIONS that it can have); the last one's error where it has none."""
    several = len(images[0]) > 1
    data, forward = (images, _call) if several else ([x for (x,) in images], None)
    for reduction in REDUCTIONS:
        model, config = copy.deepcopy(dense), hscc.Config(hscc.flops(reduction), effort="quick")
        try:
            return model, hscc.compress_(model, data, config, forward=forward), reduction
        except ValueError as error:
            if not str(error).startswith("budget:") or reduction == REDUCTIONS[-1]:
                raise
    raise AssertionError("REDUCTIONS: got none, expected some")


@torch.no_grad()
def outputs(model: Callable, inputs: Inputs) -> list[Tensor]:
    return [y for y in tree_leaves(model(*inputs)) if isinstance(y, Tensor) and y.is_floating_point()]


def _call(model: nn.Module, inputs: Inputs) -> object:
    return model(*inputs)


def _layers(report: Report) -> dict:
    reasons: dict[str, list[int]] = {}
    for layer in report.layers:
        if layer.reason:
            found = reasons.setdefault(layer.reason, [0, 0])
            found[0] += 1
            found[1] += layer.dense_flops
    taken = [layer for layer in report.layers if not layer.reason]
    return {
        "layers": len(report.layers),
        "taken": len(taken),
        "dense_flops": report.dense_flops,
        "taken_flops": sum(layer.dense_flops for layer in taken),
        "flops": report.flops,
        "reasons": reasons,
    }


def compiled(backend: str) -> Callable[[nn.Module, Inputs], tuple[list[Tensor], str]]:
    def form(model: nn.Module, inputs: Inputs) -> tuple[list[Tensor], str]:
        torch.compiler.reset()
        return outputs(torch.compile(model, fullgraph=True, backend=backend), inputs), ""

    return form


def exported(model: nn.Module, inputs: Inputs) -> tuple[list[Tensor], str]:
    with torch.no_grad():
        return outputs(torch.export.export(model, inputs).module(), inputs), ""


def in_onnx(model: nn.Module, inputs: Inputs) -> tuple[list[Tensor], str]:
    """By ``hscc.export``, for any batch where that can be, and run here by ONNX Runtime."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path, note = Path(folder, "model.onnx"), ""
        try:
            hscc.export(model, path, example=inputs[0])
        except ValueError:
            hscc.export(model, path, example=inputs[0], dynamic=())
            note = "batch fixed"
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [*map(torch.from_numpy, session.run(None, {"x": inputs[0].numpy()}))], note


def compared(form: Callable, model: nn.Module, dense: nn.Module, inputs: Inputs) -> Check:
    """Any exception becomes the reason: each is one of PyTorch's, ONNX's or ours, and the page tells it."""
    error, note = None, ""
    try:
        found, note = form(model, inputs)
        error, told = _off(found, outputs(model, inputs))
    except Exception as failed:
        told = _told(failed)
    return Check(not told, error, told, note, bool(told) and _fails(form, dense, inputs))


def _fails(form: Callable, dense: nn.Module, inputs: Inputs) -> bool:
    try:
        return bool(_off(form(dense, inputs)[0], outputs(dense, inputs))[1])
    except Exception:
        return True


def _off(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> tuple[float | None, str]:
    """(the largest error relative to the largest output, what is wrong)."""
    if [t.shape for t in found] != [t.shape for t in wanted]:
        return None, f"gives {[tuple(t.shape) for t in found]}"
    off = [((f - w).abs().max() / w.abs().max().clamp_min(1e-30)).item() for f, w in zip(found, wanted, strict=True)]
    error = max(off, key=lambda each: float("inf") if each != each else each)  # of which NaN is the worst
    return error, "" if error <= TOLERANCE else f"off by {error:.1e}"


def _distance(found: Sequence[Tensor], wanted: Sequence[Tensor], measure: Sequence[Tensor]) -> float:
    off = sum((f - w).square().sum().item() for f, w in zip(found, wanted, strict=True))
    return (off / max(sum(m.square().sum().item() for m in measure), 1e-30)) ** 0.5


def _told(error: Exception) -> str:
    """Its first line: what follows has folders of this machine in it."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}"
