"""Digests of what a compression makes of the examples: ``python -m bench.accuracy.fingerprint``.

A change that must not change behaviour prints the same lines before and after, on one machine with one torch. Only
the public interface is used, so that the file also runs beside an older commit (``PYTHONPATH=OLD:OLD/python``).
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import hscc
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

IMAGES, BATCH = 64, 32
CONFIGS = {
    "hscc 5.3x": {"budget": hscc.flops(5.3)},
    "hscc 3x, 6x fewer numbers, no squeeze": {"budget": hscc.Budget(flops=3, params=6), "squeeze": False},
    "hscc, energy, grid": {"budget": hscc.energy(0.9), "region_method": "grid", "regions": 4},
    "svd 3x": {"budget": hscc.flops(3), "method": "svd"},
    "weights 3x": {"budget": hscc.flops(3), "factorization": "weight", "regions": 2},
    "tucker2 3x": {"budget": hscc.flops(3), "method": "tucker2"},
    "spatial_svd 3x": {"budget": hscc.flops(3), "method": "spatial_svd"},
}


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    return found


def examples(root: Path) -> Iterator[tuple[str, nn.Module, list[Tensor]]]:
    """Each example's name, its dense model, and calibration images of the right size in 0..1."""
    for name in ("brain_mri", "fashion_mnist"):
        folder = root / "examples" / name
        model = module(folder / "model.py").build().eval()
        model.load_state_dict(load_file(folder / "weights.safetensors"))
        if name == "brain_mri":
            synthetic = module(folder / "synthetic.py")
            pixels = synthetic.generate(IMAGES, synthetic.SEEDS["calibration"])[0]
        else:
            pixels = module(folder / "data.py").load("train")[0][-IMAGES:]
        x = torch.from_numpy(pixels).float().div_(255)[:, None].expand(-1, model[0].in_channels, -1, -1)
        yield name, model, [*x.contiguous().split(BATCH)]


def digest(*values: object) -> str:
    """Of tensors by their bits, of anything else by its text."""
    made = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            value = value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        made.update(value if isinstance(value, bytes) else str(value).encode())
    return made.hexdigest()[:16]


def main() -> None:
    torch.set_num_threads(1)
    for name, dense, data in examples(Path(__file__).resolve().parents[2]):
        for title, options in CONFIGS.items():
            model = copy.deepcopy(dense)
            plan = hscc.plan(model, data, hscc.Config(**options))
            report = hscc.apply_(model, plan, data).to_dict() | {"seconds": None}  # which differ from run to run
            factors = digest(*model.state_dict(), *model.state_dict().values())
            planned = digest(plan.report().to_dict()["layers"])
            print(f"{name}, {title}: plan {planned}, report {digest(report)}, factors {factors}", flush=True)


if __name__ == "__main__":
    main()
