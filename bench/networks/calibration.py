"""Processor seconds and memory of calibration by number of images: ``python -m bench.networks.calibration --help``.

Times every pass over the images that ``hscc.compress_`` makes; choosing ranks depends on no image count. The sequential
fit runs the model up to each layer, dense and compressed, so it is timed at one layer of middle depth, every region of
which gets rank 16, and counted once a layer.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator

import hscc
import numpy as np
import torch
from hscc.fit import reconstruct
from hscc.maths import regions
from hscc.maths.moments import Moments, SplitMoments
from hscc.nn import surgery
from hscc.observe import calibrate, rectifiers, sensitivity
from hscc.observe.data import Calibration
from hscc.search.plan import LayerPlan
from hscc.search.ranks import Choice
from hscc.search.stats import LayerStats
from hscc.search.structure import Structure
from torch import Tensor, nn

from ..accuracy import study
from ..timing import header

RANK = 16  # of each region of the layer whose fit is timed


class Bottleneck(nn.Module):
    """ResNet-50's block: 1 x 1, 3 x 3, 1 x 1 and a shortcut; batch norms are folded, as ``hscc`` wants them."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.path = nn.Sequential(
            *(nn.Conv2d(inputs, width, 1), nn.ReLU(), nn.Conv2d(width, width, 3, stride, 1), nn.ReLU()),
            nn.Conv2d(width, outputs, 1),
        )
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return (self.path(x) + self.skip(x)).relu()


def resnet50() -> nn.Sequential:
    """The 53 convolutions of ResNet-50 with random weights."""
    layers, inputs = [nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            layers.append(Bottleneck(inputs, width, stride if block == 0 else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000)).eval()


MODELS = {"resnet50": resnet50, "alexnet": lambda: study.example("brain_mri")[0]}


class Images:
    """Random batches of 3 x 224 x 224, made when they are read: their number takes no memory."""

    def __init__(self, count: int, batch: int) -> None:
        self.sizes = [batch] * (count // batch) + [count % batch] * (count % batch > 0)

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(size, 3, 224, 224, generator=generator) for size in self.sizes)


def passes(model: nn.Module, images: Images, count: int) -> dict[str, float]:
    """Processor seconds, of all threads, of each pass over the images."""
    times: dict[str, float] = {}

    def timed(name: str, call: Callable):
        start = time.process_time()
        result = call()
        times[name] = time.process_time() - start
        return result

    layers, data = surgery.find(model).layers, Calibration.of(model, images, show=True)
    profiles = timed("profile", lambda: calibrate.profile(model, data, layers))
    cells = {name: regions.split(profile, "grid", count, 0) for name, profile in profiles.items()}

    def empty(name: str) -> Moments:
        return calibrate.empty_moments(profiles[name], cells[name], False)

    halves = {name: SplitMoments((empty(name), empty(name))) for name in profiles}
    inputs = timed("moments", lambda: calibrate.moments(model, data, layers, halves))
    metrics = timed("sensitivity", lambda: sensitivity.measure(model, data, layers, cells))
    name = [*layers][len(layers) // 2]
    stats = LayerStats(name, layers[name], profiles[name], cells[name], halves[name], *metrics[name], inputs[name])
    layer, config = _planned(stats), hscc.Config(hscc.flops(6))
    rectifier, student = rectifiers.find(model, data, [name]).get(name), surgery.Student(model, {})
    timed("fit", lambda: reconstruct.fit(student, data, layer, rectifier, config))
    times["fit"] *= len(layers)
    return times


def _planned(stats: LayerStats) -> LayerPlan:
    """Each cell a region, of rank :data:`RANK`."""
    count, (everything, _) = stats.cells.count, stats.everything
    members = tuple((cell,) for cell in range(count))
    structure = Structure(stats.cells, members, ((everything,),) * count, False)
    return LayerPlan(stats, structure, Choice(0.0, stats.dense, (RANK,) * count))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.networks.calibration", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="resnet50")
    parser.add_argument("--images", type=int, nargs="+", default=[8, 16, 32], help="numbers of images, rising")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--regions", type=int, default=16, help="memory is proportional to them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="write the results to this file")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    head = header(args.threads, args.batch)
    print(json.dumps(head))
    model, rows = MODELS[args.model](), []
    for count in sorted(args.images):
        times = passes(model, Images(count, args.batch), args.regions)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # of all so far: it stays where memory does
        rows.append({"images": count, "seconds": times, "peak_mib": round(peak)})
        told = ", ".join(f"{name} {seconds:.1f}" for name, seconds in times.items())
        print(f"{args.model}, {count} images: {sum(times.values()):.1f} s ({told}), peak {peak:.0f} MiB", flush=True)
    if len(rows) > 1:
        slope, start = np.polyfit([row["images"] for row in rows], [sum(row["seconds"].values()) for row in rows], 1)
        print(f"{slope:.2f} s an image and {start:.1f} s at the start")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"header": head, "model": args.model, "regions": args.regions, "rows": rows}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
