"""The demonstration: the example network compressed, compared with the dense one, in numbers and pictures."""

from __future__ import annotations

import copy
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from .._version import __version__
from ..compress import compress_
from ..config import Config, flops
from ..data.spec import ImageSpec
from ..evaluation.classifier import Evaluation
from ..evaluation.comparison import Comparison
from ..evaluation.outputs import Outputs, collect
from ..evaluation.speed import latency
from ..io.loading import load_model, load_module
from ..nn.fuse import fuse_
from ..report import Report
from ..search.latency import processor
from . import figures
from .report import page

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "brain_mri"
LATENCY_BATCHES = (1, 8)
BATCH = 32


def run(
    example: Path, out: Path, reductions: Sequence[float], calibration_images: int, test_images: int, seed: int
) -> dict:
    """Runs all of it with progress bars; writes ``report.json``, which it returns, ``report.html`` and two pictures."""
    if not (example / "synthetic.py").is_file():
        raise FileNotFoundError(f"example: got {str(example)!r}, expected the folder examples/brain_mri of a checkout")
    dense, spec = load_model(str(example / "model.py"), example / "weights.safetensors")
    dense = dense.to(memory_format=torch.channels_last)
    synthetic = load_module(example / "synthetic.py")
    calibration_pixels, _ = synthetic.generate(calibration_images, synthetic.SEEDS["calibration"])
    test_pixels, labels = synthetic.generate(test_images, synthetic.SEEDS["test"])
    calibration = _batches(calibration_pixels, spec)
    test = list(zip(_batches(test_pixels, spec), torch.from_numpy(labels).split(BATCH), strict=True))

    models, reports = {"dense": dense}, {}
    for reduction in reductions:
        name = f"{reduction:g}x fewer FLOPs"
        models[name] = copy.deepcopy(dense)
        reports[name] = compress_(
            models[name], calibration, Config(budget=flops(reduction), seed=seed), show_progress=True
        )
    for name in reports:
        fuse_(models[name])
    answers = collect([*models.values()], test, spec.classes, description="testing", show_progress=True)
    outputs = dict(zip(models, answers, strict=True))
    evaluations = {name: Evaluation.of(own) for name, own in outputs.items()}
    times = {n: latency(models, test[0][0][:n]) for n in LATENCY_BATCHES}
    out.mkdir(parents=True, exist_ok=True)
    figures.region_maps(models[name], calibration_pixels.mean(0), out / "regions.png")
    figures.ranks(reports, out / "ranks.png")
    result = {
        "data": "synthetic brain-MRI-like slices; no medical images",
        "machine": {"processor": processor(), "threads": torch.get_num_threads()},
        "versions": {"hscc": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "classes": list(spec.classes),
        "calibration_images": calibration_images,
        "seed": seed,
        "models": {
            name: _row(models[name], reports.get(name), evaluations[name], {n: times[n][name] for n in times}, times)
            for name in models
        },
    }
    material = page.Material(
        dense=dense,
        model=models[name],
        report=reports[name],
        calibration=calibration,
        images=test_pixels,
        comparison=Comparison.of(outputs["dense"], outputs[name], spec.classes).to_dict(),
        points=_points(reports, outputs, times[1]),
        latency=(1e3 * times[1]["dense"], 1e3 * times[1][name], 1),
        title=f"The example with {name}",
        command=f"hscc demo {' '.join(f'--flops {reduction:g}' for reduction in reductions)} --seed {seed}"
        f" --calibration {calibration_images} --test {test_images}",
    )
    page.write(material, out / "report.html")
    (out / "report.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def _batches(pixels, spec: ImageSpec) -> list[Tensor]:
    return [spec.preprocess(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH)]


def _points(reports: dict[str, Report], outputs: dict[str, Outputs], seconds: dict[str, float]) -> list[dict]:
    """The compressed models for the page's figures; the last is its own."""
    points = []
    for name, report in reports.items():
        change = outputs[name].correct.astype(float) - outputs["dense"].correct
        points.append(
            {
                "method": "hscc",
                "flop_reduction": report.flop_reduction,
                "parameter_reduction": report.parameter_reduction,
                "difference": float(change.mean()),
                "difference_standard_error": float(change.std() / len(change) ** 0.5),
                "latency_ms": 1e3 * seconds[name],
                "chosen": name == [*reports][-1],
            }
        )
    return points


def _row(model: nn.Module, report: Report | None, evaluation: Evaluation, own: dict, times: dict) -> dict:
    """``conversion`` is speed-up over FLOP reduction of the whole forward pass, by batch size."""
    reduction = report.flop_reduction if report else 1.0
    speedup = {n: times[n]["dense"] / seconds for n, seconds in own.items()}
    return {
        **asdict(evaluation),
        "flop_reduction": reduction,
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": sum(t.numel() * t.element_size() for t in model.state_dict().values()),
        "latency_ms": {n: 1e3 * seconds for n, seconds in own.items()},
        "speedup": speedup,
        "conversion": {n: s / reduction for n, s in speedup.items()},
        "compression": report.to_dict() if report else None,
    }
