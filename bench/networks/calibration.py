"""Processor seconds and memory of calibration by number of images: ``python -m bench.networks.calibration --help``.

With ``--reduction`` all of a compression, beside a dense pass over the same images. Without it every pass over the
images that ``hscc.compress_`` makes; choosing ranks depends on no image count. The sequential fit runs the model up to
each layer, dense and compressed, so it is timed at one layer of middle depth, every region of which gets rank 16, and
counted once a layer.
"""

from __future__ import annotations

import argparse
import copy
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


class Basic(nn.Module):
    """ResNet-18's block: 3 x 3 twice and a shortcut, without batch norms."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(nn.Conv2d(inputs, width, 3, stride, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1))
        self.skip = nn.Identity() if inputs == width else nn.Conv2d(inputs, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return (self.path(x) + self.skip(x)).relu()


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


def resnet18() -> nn.Sequential:
    """The 20 convolutions of ResNet-18 with random weights."""
    layers, inputs = [nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Basic(inputs, width, stride), Basic(width, width, 1)]
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)).eval()


def resnet50() -> nn.Sequential:
    """The 53 convolutions of ResNet-50 with random weights."""
    layers, inputs = [nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            layers.append(Bottleneck(inputs, width, stride if block == 0 else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000)).eval()


MODELS = {"resnet18": resnet18, "resnet50": resnet50, "alexnet": lambda: study.example("brain_mri")[0]}


class Images:
    """Random batches of 3 x size x size, made when they are read: their number takes no memory."""

    def __init__(self, count: int, batch: int, size: int = 224) -> None:
        self.sizes = [batch] * (count // batch) + [count % batch] * (count % batch > 0)
        self.shape = 3, size, size

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(size, *self.shape, generator=generator) for size in self.sizes)


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


def whole(model: nn.Module, images: Images, config: hscc.Config) -> dict[str, float]:
    """Processor seconds, of all threads, of a dense pass, and of planning and fitting a compression."""
    times = [time.process_time()]
    with torch.no_grad():
        for x in images:
            model(x)
    times.append(time.process_time())
    plan = hscc.plan(model, images, config, show_progress=True)
    times.append(time.process_time())
    hscc.apply_(model, plan, images, True)
    times.append(time.process_time())
    return dict(zip(("dense pass", "plan", "apply"), np.diff(times).tolist(), strict=True))


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
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--reduction", type=float, help="compress to so many times fewer FLOPs, and time all of it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="write the results to this file")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    head = header(args.threads, args.batch)
    print(json.dumps(head))
    torch.manual_seed(0)
    model, rows = MODELS[args.model](), []
    for count in sorted(args.images):
        images = Images(count, args.batch, args.size)
        if args.reduction is None:
            times = passes(model, images, args.regions)
        else:
            config = hscc.Config(hscc.flops(args.reduction), regions=args.regions)
            times = whole(copy.deepcopy(model), images, config)
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
