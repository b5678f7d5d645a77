"""The examples, whole: the accuracy that the README promises, on all their test images."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import hscc
import pytest
import torch
from hscc.evaluation.classifier import evaluate
from hscc.io.loading import load_model, load_module
from torch import Tensor, nn

EXAMPLES = Path(__file__).parents[1] / "examples"
BATCH = 50


class Example(NamedTuple):
    dense: nn.Module
    classes: tuple[str, ...]
    calibration: list[Tensor]
    test: list[tuple[Tensor, Tensor]]
    accuracy: float

    def compressed(self, budget: hscc.Budget) -> tuple[float, hscc.Report]:
        """Accuracy in percent after compression, and the report."""
        model = copy.deepcopy(self.dense)
        report = hscc.compress_(model, self.calibration, hscc.Config(budget))
        return 100 * evaluate(model, self.test, self.classes).accuracy, report


def example(name: str, calibration, images, labels, network: str | None = None) -> Example:
    code, weights = (f"{network}.py", f"{network}.safetensors") if network else ("model.py", "weights.safetensors")
    dense, spec = load_model(str(EXAMPLES / name / code), EXAMPLES / name / weights)
    dense = dense.to(memory_format=torch.channels_last)
    batches = [spec.preprocess(part) for part in _split(images)]
    test = list(zip(batches, torch.as_tensor(labels).split(BATCH), strict=True))
    accuracy = 100 * evaluate(dense, test, spec.classes).accuracy
    return Example(dense, spec.classes, [spec.preprocess(part) for part in _split(calibration)], test, accuracy)


def _split(images) -> list:
    return [images[i : i + BATCH] for i in range(0, len(images), BATCH)]


@cache
def photographs(network: str | None = None) -> Example:
    data = load_module(EXAMPLES / "fashion_mnist" / "data.py")
    return example("fashion_mnist", data.load("train")[0][-512:], *data.load("test"), network=network)


@pytest.fixture(scope="module")
def brain_mri() -> Example:
    synthetic = load_module(EXAMPLES / "brain_mri" / "synthetic.py")
    images, labels = synthetic.generate(2000, synthetic.SEEDS["test"])
    calibration, _ = synthetic.generate(256, synthetic.SEEDS["calibration"])
    return example("brain_mri", calibration, images, labels)


@pytest.fixture(scope="module")
def fashion_mnist() -> Example:
    return photographs()


@pytest.mark.slow
def test_brain_mri(brain_mri: Example) -> None:
    assert 93 <= brain_mri.accuracy <= 97
    for reduction, points in ((3, 0.5), (5.3, 1.0)):
        accuracy, report = brain_mri.compressed(hscc.flops(reduction))
        print(f"{reduction}x: dense {brain_mri.accuracy:.2f} %, compressed {accuracy:.2f} %")
        assert report.flop_reduction >= reduction
        assert accuracy >= brain_mri.accuracy - points


@pytest.mark.slow
@pytest.mark.photographs
def test_fashion_mnist(fashion_mnist: Example) -> None:
    assert fashion_mnist.accuracy >= 92.5
    accuracy, report = fashion_mnist.compressed(hscc.flops(3))
    print(f"3x: dense {fashion_mnist.accuracy:.2f} %, compressed {accuracy:.2f} %")
    assert report.flop_reduction >= 3
    assert accuracy >= fashion_mnist.accuracy - 1.0


@pytest.mark.slow
@pytest.mark.photographs
@pytest.mark.parametrize("name", ["resnet20", "mobilenet"])
def test_networks_of_fashion_mnist_reach_their_record(name: str) -> None:
    record = json.loads((EXAMPLES / "fashion_mnist" / f"{name}.json").read_text())
    assert photographs(name).accuracy == pytest.approx(100 * record["accuracy"], abs=0.05)


@pytest.mark.slow
@pytest.mark.photographs
def test_resnet20() -> None:
    resnet = photographs("resnet20")
    accuracy, report = resnet.compressed(hscc.flops(3))
    print(f"3x: dense {resnet.accuracy:.2f} %, compressed {accuracy:.2f} %")
    assert report.flop_reduction >= 3
    assert accuracy >= resnet.accuracy - 1.3


@pytest.mark.slow
def test_unet_reaches_its_record() -> None:
    folder = EXAMPLES / "brain_mri"
    segment, synthetic = (load_module(folder / f"{name}.py") for name in ("segment", "synthetic"))
    dense, _ = load_model(str(folder / "unet.py"), folder / "unet.safetensors")
    pixels, masks = synthetic.generate_masks(400, synthetic.SEEDS["test"])
    tumour = masks.any((1, 2))
    scores = segment.dice(segment.predict(dense, pixels[tumour]), masks[tumour])
    assert len(scores) == 300
    record = json.loads((folder / "unet.json").read_text())
    few = 5**0.5  # as these are a fifth of its pictures
    assert scores.mean() == pytest.approx(record["dice"], abs=3 * few * record["standard_error"])


def test_masks_mark_the_tumours_of_the_same_pictures() -> None:
    synthetic = load_module(EXAMPLES / "brain_mri" / "synthetic.py")
    images, labels = synthetic.generate(12, 7)
    pixels, masks = synthetic.generate_masks(12, 7)
    assert (abs(pixels - images.reshape(12, 112, 2, 112, 2).mean((2, 4))) <= 0.5).all()
    assert masks.any((1, 2)).tolist() == [synthetic.CLASSES[label] != "notumor" for label in labels]


def test_generator_is_deterministic_and_balanced() -> None:
    synthetic = load_module(EXAMPLES / "brain_mri" / "synthetic.py")
    images, labels = synthetic.generate(12, 7)
    again, _ = synthetic.generate(8, 7)
    assert (images[:8] == again).all()
    assert sorted(labels.tolist()) == sorted(list(range(4)) * 3)
    assert len(set(synthetic.SEEDS.values())) == len(synthetic.SEEDS)


def test_the_demo_finds_its_example() -> None:
    from hscc.app import demo

    assert (demo.EXAMPLE / "weights.safetensors").is_file()
