"""Draws synthetic pictures in the style of axial brain MRI, in four classes. They are NO medical data.

Every picture is made up by a formula from random numbers: no patient, scanner or data set is behind it, and a
result on these pictures says nothing about clinical use. The classes carry the folder names of the public
brain-tumour sets, so that one program runs on either. Tumours differ as in a textbook: a glioma is irregular,
often a ring with oedema inside the tissue; a meningioma is even and bright with a broad base at the skull or
the midline fold; a pituitary tumour is small and sits at the midline of the skull base; any picture may hold
harmless look-alikes (vessels, calcifications, cysts, uneven ventricles).

    python examples/brain_mri/synthetic.py --out data/brain_mri
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.random import Generator
from scipy import ndimage
from threadpoolctl import threadpool_limits

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
SIZE = 224
SEEDS = {"train": 1_000, "calibration": 2_000, "test": 3_000}
NOTICE = "Synthetic pictures drawn by a program: no medical data."

BRAIN = 0.82  # where the brain ends, as a fraction of the head's radius


@lru_cache
def _spline(knots: int) -> np.ndarray:
    """Cubic B-spline weights, float32 (SIZE, knots): stretches a row of ``knots`` values over the picture."""
    x = np.abs(np.linspace(0.5, knots - 1.5, SIZE)[:, None] - np.arange(knots))
    return np.where(x < 1, 2 / 3 - x**2 + x**3 / 2, np.clip(2 - x, 0, None) ** 3 / 6).astype(np.float32)


def _noise(rng: Generator, knots: int) -> np.ndarray:
    """Smooth noise of about unit variance, float32 (SIZE, SIZE); more knots make it finer."""
    weights = _spline(knots)
    return 2.0 * weights @ rng.standard_normal((knots, knots), dtype=np.float32) @ weights.T


def _inside(distance: np.ndarray, softness: float = 0.02) -> np.ndarray:
    """1 where the distance is negative, 0 where it is positive, with a ramp of the given width between."""
    return np.clip(0.5 - distance / softness, 0, 1)


def _paint(image: np.ndarray, mask: np.ndarray, value: float | np.ndarray) -> None:
    image += mask * (value - image)


@dataclass
class Head:
    """One head's pose and outline; all fields are float32 (SIZE, SIZE).

    x grows to the patient's left and y to the back, both about -1..1; rho is 0 in the middle, 1 at the skin.
    """

    x: np.ndarray
    y: np.ndarray
    rho: np.ndarray
    radius: Callable[[float | np.ndarray], float | np.ndarray]  # of the outline at an angle

    @classmethod
    def draw(cls, rng: Generator) -> Head:
        axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
        turn, zoom = rng.normal(0, 0.13), rng.uniform(0.98, 1.18)
        shift = rng.normal(0, 0.04, 2).astype(np.float32)
        column, row = axis[None, :] - shift[0], axis[:, None] - shift[1]
        c, s = float(zoom * np.cos(turn)), float(zoom * np.sin(turn))
        x, y = c * column - s * row, s * column + c * row
        wide, long = rng.uniform(0.72, 0.84), rng.uniform(0.92, 1.0)
        waves = [(k, rng.normal(0, 0.025 / k), rng.uniform(0, 6.3)) for k in (1, 2, 3, 4)]

        def radius(angle: float | np.ndarray) -> float | np.ndarray:
            ellipse = 1 / np.sqrt((np.cos(angle) / wide) ** 2 + (np.sin(angle) / long) ** 2)
            return ellipse * (1 + sum(height * np.cos(k * angle + phase) for k, height, phase in waves))

        turns = np.linspace(-np.pi, np.pi, 256, dtype=np.float32)
        rho = np.sqrt(x * x + y * y) / np.interp(np.arctan2(y, x), turns, radius(turns)).astype(np.float32)
        return cls(x, y, rho, radius)

    def spot(self, x: float, y: float, wide: float, long: float, turn: float = 0.0) -> np.ndarray:
        """Distance from a centre in units of an ellipse's half-axes: 1 on its edge."""
        c, s = float(np.cos(turn)), float(np.sin(turn))
        across = self.x * (c / wide)
        across += self.y * (s / wide) - (c * x + s * y) / wide
        along = self.y * (c / long)
        along -= self.x * (s / long) + (c * y - s * x) / long
        across *= across
        along *= along
        across += along
        return np.sqrt(across, out=across)

    def point(self, rng: Generator, depth: float) -> tuple[float, float, float]:
        """A random point at the given rho: (x, y, direction from the centre)."""
        angle = rng.uniform(0, 2 * np.pi)
        radius = depth * float(self.radius(angle))
        return radius * float(np.cos(angle)), radius * float(np.sin(angle)), angle

    def press(self, x: float, y: float, radius: float, strength: float) -> Head:
        """The head with its tissue pushed away from a point, as by a growing mass; the skull stays."""
        dx, dy = self.x - np.float32(x), self.y - np.float32(y)
        push = np.float32(strength) * np.exp(-(dx**2 + dy**2) / np.float32(4.5 * radius**2))
        return Head(self.x - push * dx, self.y - push * dy, self.rho, self.radius)


def _contrast(rng: Generator) -> dict[str, float]:
    """Grey levels of the tissues for a picture in the style of T1 with contrast agent, or of FLAIR."""
    t1 = dict(scalp=0.80, skull=0.07, fluid=0.14, grey=0.42, white=0.58, oedema=0.26, lesion=0.92, necrosis=0.20)
    flair = dict(scalp=0.60, skull=0.07, fluid=0.10, grey=0.48, white=0.38, oedema=0.74, lesion=0.88, necrosis=0.20)
    levels = t1 if rng.random() < 0.8 else flair
    return {name: level + rng.normal(0, 0.025) for name, level in levels.items()}


def _tissue(rng: Generator, head: Head, tone: dict[str, float]) -> np.ndarray:
    """Scalp, skull, fluid and brain with its folded cortex, float32 (SIZE, SIZE)."""
    rho = head.rho + 0.012 * _noise(rng, 9)
    skull = rng.uniform(0.93, 0.96)
    image = tone["scalp"] * (0.85 + 0.1 * _noise(rng, 40)) * _inside(head.rho - 1)
    _paint(image, _inside(rho - skull), tone["skull"])
    _paint(image, _inside(rho - 0.5 * (skull + BRAIN)), tone["fluid"])
    _paint(image, _inside(rho - BRAIN), tone["grey"] + 0.02 * _noise(rng, 48))
    fold = _noise(rng, int(rng.integers(26, 36)))
    _paint(image, _inside(rho - 0.66 - 0.11 * fold, 0.05), tone["white"] + 0.015 * _noise(rng, 20))
    furrow = _inside(np.abs(fold) - rng.uniform(0.1, 0.3), 0.2) * _inside(rho - BRAIN)
    _paint(image, 0.8 * furrow * np.clip((rho - 0.5) * 6, 0, 1), tone["fluid"])
    return image


def _upper_slice(rng: Generator, head: Head, tone: dict[str, float], image: np.ndarray) -> None:
    """The midline fold, and the ventricles with the deep grey matter unless the slice is above them."""
    falx = _inside(np.abs(head.x) - 0.008) * _inside(head.rho - BRAIN) * _inside(0.42 - np.abs(head.y), 0.1)
    _paint(image, 0.8 * falx, tone["fluid"] if rng.random() < 0.7 else tone["grey"] + 0.2)
    if rng.random() < 0.25:
        return
    size = rng.uniform(0.75, 1.35)
    for side in (-1, 1):
        grow = size * rng.uniform(0.8, 1.2)
        _paint(image, _inside(head.spot(side * 0.2, -0.02, 0.1, 0.17, side * 0.3) - 1, 0.3), tone["grey"])
        horns = np.minimum(
            head.spot(side * 0.075, -0.17, 0.04 * grow, 0.15 * grow, side * 0.35),
            head.spot(side * 0.13, 0.20, 0.05 * grow, 0.17 * grow, -side * 0.4),
        )
        _paint(image, _inside(horns - 1, 0.25), tone["fluid"])
    _paint(image, 0.8 * _inside(head.spot(0, 0.03, 0.015 * size, 0.1) - 1, 0.3), tone["fluid"])


def _base_slice(rng: Generator, head: Head, tone: dict[str, float], image: np.ndarray) -> None:
    """Sphenoid wings, cistern, brain stem and cerebellum, sometimes the eyes."""
    x, y = np.abs(head.x), head.y
    hind = _inside(0.24 + 0.25 * x - y, 0.05) * _inside(head.rho - BRAIN)
    stripes = np.sin(np.sqrt(x * x + (y - 0.1) ** 2) * rng.uniform(55, 75) + 2 * _noise(rng, 8))
    _paint(image, hind, tone["grey"] + 0.06 * stripes)
    for slope, start in ((-0.45, -0.08), (0.3, 0.16)):
        bone = _inside(np.abs(y - start - slope * x) - rng.uniform(0.01, 0.025)) * _inside(0.13 - x, 0.05)
        _paint(image, bone * _inside(head.rho - 0.88), tone["skull"])
    cistern = head.spot(0, -0.02, 0.17, 0.13) + 0.15 * np.cos(5 * np.arctan2(y + 0.02, x))
    _paint(image, _inside(cistern - 1, 0.2), tone["fluid"])
    _paint(image, _inside(head.spot(0, 0.16, 0.14, 0.12) - 1, 0.15), tone["white"])
    _paint(image, _inside(head.spot(0, 0.31, 0.06, 0.04) - 1, 0.3), tone["fluid"])
    _paint(image, _inside(x - 0.008) * _inside(y + 0.2, 0.1) * _inside(head.rho - BRAIN), tone["fluid"])
    if rng.random() < 0.5:
        for side in (-1, 1):
            eye = head.spot(side * 0.27, -0.66, 0.13, 0.14)
            _paint(image, _inside(eye - 1.25, 0.2), tone["scalp"])
            _paint(image, _inside(eye - 1, 0.15), tone["fluid"])


def _look_alikes(rng: Generator, head: Head, tone: dict[str, float], image: np.ndarray, base: bool) -> None:
    """Harmless findings, equally likely in every class, so that a bright spot alone decides nothing."""
    brain = _inside(head.rho - BRAIN)
    for _ in range(rng.poisson(0.8)):  # vessels and calcifications
        x, y, _ = head.point(rng, rng.uniform(0.1, 0.8))
        size, value = rng.uniform(0.012, 0.035), (tone["lesion"], 0.05)[rng.integers(2)]
        _paint(image, _inside(head.spot(x, y, size, size * rng.uniform(0.8, 2), rng.uniform(0, 3)) - 1, 0.5), value)
    if rng.random() < 0.2:  # a cyst
        x, y, _ = head.point(rng, rng.uniform(0.2, 0.8))
        size = rng.uniform(0.03, 0.06)
        _paint(image, brain * _inside(head.spot(x, y, size, size) - 1, 0.2), tone["fluid"])
    if rng.random() < 0.2:  # a faint patch in the white matter
        x, y, _ = head.point(rng, rng.uniform(0.2, 0.65))
        patch = head.spot(x, y, rng.uniform(0.04, 0.08), rng.uniform(0.03, 0.07), rng.uniform(0, 3))
        _paint(image, 0.6 * brain * _inside(patch + 0.3 * _noise(rng, 20) - 1, 0.6), tone["oedema"])
    if rng.random() < 0.25:  # a bright stretch of the brain's envelope or a venous sinus
        x, y, angle = head.point(rng, BRAIN + 0.02)
        along = head.spot(x, y, rng.uniform(0.02, 0.03), rng.uniform(0.08, 0.16), angle)
        _paint(image, _inside(along - 1, 0.3), tone["lesion"] - 0.1)
    if base and rng.random() < 0.6:  # the normal gland, or an artery beside it
        size = rng.uniform(0.02, 0.04)
        gland = head.spot(rng.normal(0, 0.03), rng.normal(-0.05, 0.02), size * rng.uniform(1, 1.4), size)
        _paint(image, _inside(gland - 1, 0.4), tone["lesion"] - rng.uniform(0, 0.25))


def _tumour(rng: Generator, head: Head, tone: dict[str, float], kind: str, base: bool):
    """Where a tumour grows: (head pushed aside by it, painter of an image, bool (SIZE, SIZE) mask of its core).

    The mask is the tumour's own shape inside the brain, for a faint one as well; oedema around it is not in it.
    """
    strength = rng.uniform(0.85, 1.0) if rng.random() < 0.9 else rng.uniform(0.3, 0.7)  # a tenth is faint
    brain = _inside(head.rho - BRAIN - 0.02)
    if kind == "glioma":
        x, y, angle = head.point(rng, rng.uniform(0.15, 0.7))
        radius = rng.uniform(0.12, 0.23)
        shape = head.spot(x, y, radius * rng.uniform(0.8, 1.3), radius, angle)
        shape = shape + rng.uniform(0.1, 0.25) * _noise(rng, 16) + 0.05 * _noise(rng, 40)
        grade = rng.random()  # diffuse without a core, solid, or a ring around a dead core

        def paint(image: np.ndarray) -> None:
            halo = shape - rng.uniform(1.2, 1.8) + 0.2 * _noise(rng, 14)
            _paint(image, 0.8 * strength * brain * _inside(halo, 0.4), tone["oedema"])
            if grade > 0.08:
                mottled = tone["lesion"] + 0.08 * _noise(rng, 40)
                _paint(image, strength * brain * _inside(shape - 1, 0.15), mottled)
            if grade > 0.3:
                _paint(image, brain * _inside(shape - rng.uniform(0.55, 0.8), 0.2), tone["necrosis"])

    elif kind == "meningioma":
        radius, place = rng.uniform(0.11, 0.19), rng.random()
        if place < 0.7:  # at the skull
            x, y, angle = head.point(rng, BRAIN - 0.03)
        elif base:  # at a sphenoid wing
            x, y, angle = (-1, 1)[rng.integers(2)] * rng.uniform(0.1, 0.35), rng.normal(-0.15, 0.04), np.pi / 2
        else:  # at the midline fold
            x, y, angle = rng.normal(0, 0.03), (-1, 1)[rng.integers(2)] * rng.uniform(0.45, 0.7), 0.0
        shape = head.spot(x, y, radius * rng.uniform(0.7, 1.0), radius * 1.2, angle) + 0.05 * _noise(rng, 14)

        def paint(image: np.ndarray) -> None:
            _paint(image, 0.5 * strength * brain * _inside(shape - rng.uniform(1, 1.35), 0.3), tone["oedema"])
            _paint(image, strength * brain * _inside(shape - 1, 0.12), tone["lesion"] + 0.02 * _noise(rng, 30))

    else:
        x, y, radius = rng.normal(0, 0.02), rng.normal(-0.06, 0.025), rng.uniform(0.085, 0.14)
        shape = head.spot(x, y, radius * rng.uniform(0.9, 1.25), radius * rng.uniform(0.8, 1.2))
        shape = shape + 0.06 * _noise(rng, 18)

        def paint(image: np.ndarray) -> None:
            _paint(image, strength * _inside(shape - 1, 0.15), tone["lesion"] + 0.03 * _noise(rng, 40))

    mask = (shape < 1) & (head.rho < BRAIN + 0.02)
    return head.press(x, y, radius, rng.uniform(0, 0.5)), paint, mask


def _scan(rng: Generator, image: np.ndarray) -> np.ndarray:
    """Uneven coil sensitivity, gamma, blur and Rician noise: float32 (SIZE, SIZE) -> uint8."""
    image = np.clip(image, 0, 1.2) ** np.float32(rng.uniform(0.85, 1.25))
    image *= 1 + rng.uniform(0, 0.12) * _noise(rng, 5)
    image = ndimage.gaussian_filter(image, rng.uniform(0.4, 1.0), truncate=2.5)
    real, imaginary = rng.standard_normal((2, SIZE, SIZE), dtype=np.float32)
    sigma, gain = rng.uniform(0.01, 0.05), rng.uniform(190, 270)
    real *= sigma
    real += image
    real *= real
    imaginary *= sigma
    imaginary *= imaginary
    real += imaginary
    return np.clip(gain * np.sqrt(real, out=real), 0, 255).astype(np.uint8)


def draw_with_mask(index: int, seed: int) -> tuple[np.ndarray, int, np.ndarray]:
    """As :func:`draw`, and where the tumour is: bool (SIZE, SIZE)."""
    label = int(np.random.default_rng([seed, index // 4, 0]).permutation(4)[index % 4])
    rng, kind = np.random.default_rng([seed, index]), CLASSES[label]
    base = kind == "pituitary" or rng.random() < 0.4
    head, tone = Head.draw(rng), _contrast(rng)
    inner, paint, mask = head, None, np.zeros((SIZE, SIZE), bool)
    if kind != "notumor":
        inner, paint, mask = _tumour(rng, head, tone, kind, base)
    image = _tissue(rng, inner, tone)
    (_base_slice if base else _upper_slice)(rng, inner, tone, image)
    _look_alikes(rng, head, tone, image, base)
    if paint:
        paint(image)
    return _scan(rng, image), label, mask


def draw(index: int, seed: int) -> tuple[np.ndarray, int]:
    """Picture ``index`` of a seed, uint8 (SIZE, SIZE), and its label; every four in a row hold each class once."""
    return draw_with_mask(index, seed)[:2]


def draw_halved(index: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture, uint8, and its mask, bool, both (SIZE / 2, SIZE / 2): means of 2 x 2 pixels, rounded."""
    image, _, mask = draw_with_mask(index, seed)
    sums = (x.reshape(SIZE // 2, 2, SIZE // 2, 2).sum((1, 3), dtype=np.uint16) for x in (image, mask))
    pixels, tumour = ((x + 2) // 4 for x in sums)
    return pixels.astype(np.uint8), tumour.astype(bool)


def stream(count: int, seed: int, *, workers: int = 0, draw: Callable = draw) -> Iterator[tuple]:
    """The first ``count`` pictures of a seed, one by one; ``workers`` processes draw them (0: this one)."""
    one = partial(draw, seed=seed)
    if not workers:
        yield from map(one, range(count))
        return
    with ProcessPoolExecutor(workers, initializer=threadpool_limits, initargs=(1,)) as pool:
        yield from pool.map(one, range(count), chunksize=32)


def generate(count: int, seed: int, *, workers: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The first ``count`` pictures of a seed: uint8 (count, SIZE, SIZE) and labels int64 (count,)."""
    images, labels = np.empty((count, SIZE, SIZE), np.uint8), np.empty(count, np.int64)
    for i, (image, label) in enumerate(stream(count, seed, workers=workers)):
        images[i], labels[i] = image, label
    return images, labels


def generate_masks(count: int, seed: int, *, workers: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`generate`, at half the size: pictures uint8 and masks of tumours bool, both (count, H, W)."""
    images, masks = (np.empty((count, SIZE // 2, SIZE // 2), kind) for kind in (np.uint8, bool))
    for i, (image, mask) in enumerate(stream(count, seed, workers=workers, draw=draw_halved)):
        images[i], masks[i] = image, mask
    return images, masks


def main(
    out: Annotated[Path, typer.Option(help="Folder to write: <out>/<split>/<class>/<index>.png.")],
    train: Annotated[int, typer.Option(min=0, help="Training pictures.")] = 4000,
    test: Annotated[int, typer.Option(min=0, help="Test pictures.")] = 2000,
    calibration: Annotated[int, typer.Option(min=0, help="Calibration pictures.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Added to the seed of every split.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw.")] = os.cpu_count() or 1,
) -> None:
    """Write synthetic brain-MRI-like pictures into class folders.

    Example: python examples/brain_mri/synthetic.py --out data/brain_mri
    """
    from PIL import Image
    from rich.progress import track

    print(NOTICE)
    for split, count in (("train", train), ("calibration", calibration), ("test", test)):
        for name in CLASSES:
            (out / split / name).mkdir(parents=True, exist_ok=True)
        pictures = stream(count, SEEDS[split] + seed, workers=workers)
        for i, (image, label) in enumerate(track(pictures, f"{split:<11}", total=count)):
            Image.fromarray(image).save(out / split / CLASSES[label] / f"{i:05d}.png")
    print(f"{train + calibration + test} synthetic pictures in {out}")


if __name__ == "__main__":
    typer.run(main)
