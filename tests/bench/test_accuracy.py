"""The accuracy study on a small network and made-up images: what a cell says, a grid skips, and the page shows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import hscc
import numpy as np
import pytest
import torch
from hscc.data.spec import ImageSpec
from hscc.io.loading import build_model
from torch import nn
from typer.testing import CliRunner

from bench.accuracy import examples
from bench.accuracy import page as accuracy_page
from bench.accuracy import study as accuracy

SPEC = ImageSpec((12, 12), 1, (0.5,), (0.25,), ("bright", "dark", "striped"))
KEYS = {
    *("data", "method", "flops", "params", "calibration", "finetune_epochs", "seed", "config", "weights", "version"),
    *("dense_accuracy", "dense_standard_error", "accuracy", "standard_error", "difference"),
    *("difference_standard_error", "test_images", "flop_reduction", "param_reduction", "seconds", "finetune_images"),
}


@pytest.fixture
def study(tmp_path: Path, monkeypatch):
    """The command on a network of two layers; ``study.weights`` is the digest of its weights."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 3)),
    ).eval()
    with torch.no_grad():  # so that all classes occur
        model[-1].bias -= model(2 * torch.randn(100, 1, 3, 3).repeat_interleave(4, 2).repeat_interleave(4, 3)).mean(0)
    state = SimpleNamespace(weights="one", folder=tmp_path)

    def images(data: str, split: str, count: int, seed: int):
        generator = np.random.default_rng([seed, len(split)])
        pixels = np.kron(generator.integers(0, 255, (count, 3, 3), dtype=np.uint8), np.ones((1, 4, 4), np.uint8))
        with torch.inference_mode():
            labels = model(SPEC.preprocess(pixels)).argmax(1).numpy()
        labels[::5] = (labels[::5] + 1) % 3  # the dense model is right on four of five
        return pixels, labels

    def run(*arguments: str):
        options = ["--data", "fashion_mnist", "--results", str(tmp_path / "cells"), "--page", str(tmp_path / "page.md")]
        return CliRunner().invoke(accuracy.app, [*options, "--calibration", "40", *arguments])

    monkeypatch.setattr(accuracy, "network", lambda data: (model, SPEC, state.weights))
    monkeypatch.setattr(accuracy, "images", images)
    small = dataclasses.replace(examples.EXAMPLES["fashion_mnist"], test_images=150)
    monkeypatch.setitem(examples.EXAMPLES, "fashion_mnist", small)
    accuracy.dense_scores.cache_clear()
    accuracy.lessons.cache_clear()
    state.run = run
    yield state
    accuracy.dense_scores.cache_clear()
    accuracy.lessons.cache_clear()


def test_one_cell(study) -> None:
    file = study.folder / "cell.json"
    result = study.run("--method", "tucker2", "--flops", "4", "--seed", "3", "--json", str(file))
    assert result.exit_code == 0, result.output
    cell = json.loads(file.read_text())
    assert set(cell) == KEYS
    assert cell["dense_accuracy"] == pytest.approx(0.8)
    assert cell["dense_standard_error"] == pytest.approx((0.8 * 0.2 / 150) ** 0.5, rel=0.1)
    assert cell["difference"] == pytest.approx(cell["accuracy"] - cell["dense_accuracy"])
    assert 0 < cell["difference_standard_error"] < cell["standard_error"] + cell["dense_standard_error"]
    assert cell["flop_reduction"] >= 4
    assert (cell["test_images"], cell["seed"], cell["config"]["seed"]) == (150, 3, 3)
    assert hscc.Config.from_json(json.dumps(cell["config"])).method == "tucker2"
    assert not (study.folder / "page.md").exists()


def test_nothing_is_lost_at_one_time_fewer_flops(study) -> None:
    file = study.folder / "cell.json"
    study.run("--method", "svd", "--flops", "1", "--json", str(file))
    cell = json.loads(file.read_text())
    assert (cell["difference"], cell["difference_standard_error"]) == (0, 0)


def test_grid_goes_on_where_it_stopped(study, monkeypatch) -> None:
    grid = ("--flops", "3", "--method", "svd", "--method", "spatial_svd")
    assert study.run(*grid[:4]).exit_code == 0
    ran = []
    real = accuracy.run
    monkeypatch.setattr(accuracy, "run", lambda cell, *rest: ran.append(cell.method) or real(cell, *rest))
    assert study.run(*grid).exit_code == 0
    assert ran == ["spatial_svd"]
    assert study.run(*grid).exit_code == 0
    assert ran == ["spatial_svd"]
    assert study.run(*grid, "--seed", "1").exit_code == 0
    assert ran == ["spatial_svd", "svd", "spatial_svd"]
    study.weights = "two"  # trained anew: what was measured before no longer holds
    assert study.run(*grid).exit_code == 0
    assert ran[3:] == ["svd", "spatial_svd"]
    page = (study.folder / "page.md").read_text()
    assert "seeds)" not in page, "the cell of seed 1 is of the old weights"


def test_what_a_method_cannot_do_is_a_result(study) -> None:
    result = study.run("--method", "tucker2", "--method", "svd", "--flops", "300")
    assert result.exit_code == 0, result.output
    page = (study.folder / "page.md").read_text()
    assert "Tucker-2, activations at 300x: budget: got" in page
    assert "| SVD, activations |" in page
    assert (study.folder / "page-fashion_mnist-40-images.png").stat().st_size > 1000


def test_parameter_limit_and_fine_tuning(study, monkeypatch) -> None:
    seen = {}

    def finetune(student, teacher, batches, *, epochs, also, **rest):
        seen.update(epochs=epochs, also=also, images=sum(len(batch) for batch in batches))

    monkeypatch.setattr(hscc, "finetune", finetune)
    file = study.folder / "cell.json"
    options = ("--params", "5", "--finetune-epochs", "2", "--finetune-images", "70", "--json", str(file))
    result = study.run("--method", "tucker2", "--flops", "3", *options)
    assert result.exit_code == 0, result.output
    cell = json.loads(file.read_text())
    assert cell["param_reduction"] >= 5
    assert (seen["epochs"], seen["images"]) == (2, 70)
    assert seen["also"] == [""], "the whole network is trained"
    assert cell["finetune_images"] == 70


def test_the_teacher_is_asked_once_a_batch(study) -> None:
    teacher, batches = accuracy.lessons("fashion_mnist", 70, 0)
    first, second = ([teacher(batch) for batch in batches] for _ in range(2))
    assert all(a is b for a, b in zip(first, second, strict=True))
    for batch, answer in zip(batches, first, strict=True):
        torch.testing.assert_close(answer, teacher.teacher(batch))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--method", "magic"), "got data 'fashion_mnist' and methods"),
        (("--method", "svd", "--json", "x.json"), "json: got 7 cells, expected one --method and one --flops"),
    ],
)
def test_wrong_use(study, arguments: tuple[str, ...], match: str) -> None:
    result = study.run(*arguments)
    assert isinstance(result.exception, ValueError)
    assert match in str(result.exception)


def test_every_method_is_valid_and_has_a_title() -> None:
    assert set(accuracy.METHODS) == set(accuracy_page.TITLES)
    configs = {name: accuracy.Cell("fashion_mnist", name, 3).config() for name in accuracy.METHODS}
    assert len(set(configs.values())) == len(configs)


def test_help_has_an_example() -> None:
    result = CliRunner().invoke(accuracy.app, ["--help"])
    assert "python -m bench.accuracy --data" in result.output


def test_splits_of_fashion_mnist_do_not_overlap(monkeypatch) -> None:
    numbered = {"train": np.arange(100), "test": np.arange(100, 120)}
    source = SimpleNamespace(HELD_OUT=30, load=lambda split: (numbered[split], numbered[split] % 10))
    monkeypatch.setattr(examples, "load_module", lambda path: source)
    images = examples.images.__wrapped__
    drawn = [images("fashion_mnist", "calibration", 16, seed)[0] for seed in (0, 0, 1)]
    assert drawn[0].tolist() == drawn[1].tolist() != drawn[2].tolist()
    assert min(drawn[0].min(), drawn[2].min()) >= 70
    assert len(set(drawn[0].tolist())) == 16
    pixels, labels = images("fashion_mnist", "train", 70, 0)
    assert sorted(pixels.tolist()) == list(range(70))
    assert (labels == pixels % 10).all()
    assert images("fashion_mnist", "test", 10, 5)[0].tolist() == list(range(100, 110))
    with pytest.raises(ValueError, match="calibration: got 31 images, expected at most 30"):
        images("fashion_mnist", "calibration", 31, 0)


def test_pictures_are_drawn_once(tmp_path: Path, monkeypatch) -> None:
    drawn = []

    def generate(count: int, seed: int):
        drawn.append((count, seed))
        return np.full((count, 4, 4), seed % 256, np.uint8), np.zeros(count, np.int64)

    source = SimpleNamespace(SEEDS={"test": 3000, "calibration": 2000}, generate=generate)
    monkeypatch.setattr(examples, "load_module", lambda path: source)
    monkeypatch.setattr(examples, "CACHE", tmp_path)
    images = examples.images.__wrapped__
    first = images("brain_mri", "test", 5, 2)
    assert all((a == b).all() for a, b in zip(first, images("brain_mri", "test", 5, 2), strict=True))
    images("brain_mri", "calibration", 5, 2)
    assert drawn == [(5, 3002), (5, 2002)]


def test_the_examples_own_pictures_can_be_drawn(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(examples, "CACHE", tmp_path)
    pixels, labels = examples.images.__wrapped__("brain_mri", "test", 2, 0)
    assert (pixels.dtype, pixels.shape, labels.shape) == (np.uint8, (2, 224, 224), (2,))


def test_test_pictures_of_the_segmentation_have_a_tumour(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(examples, "CACHE", tmp_path)
    for split, tumours in (("test", 5), ("calibration", 3)):
        pixels, masks = examples.images.__wrapped__("unet", split, 5, 0)
        assert (pixels.dtype, pixels.shape, masks.dtype, masks.shape) == (np.uint8, (5, 112, 112), bool, (5, 112, 112))
        assert masks.any((1, 2)).sum() >= tumours


def test_scores_of_images() -> None:
    logits = torch.tensor([[0.0, 2, 1], [3, 0, 0]])
    assert examples.hits(logits, np.array([1, 2])).tolist() == [1, 0]
    marked, masks = torch.full((3, 1, 4, 4), -1.0), np.zeros((3, 4, 4), bool)
    marked[:2, :, :2], masks[0, :, :2] = 1, True  # the upper half, the left half
    assert examples.dice(marked, masks).tolist() == [0.5, 0, 1]


def test_a_segmentation_is_scored_by_dice(study, monkeypatch) -> None:
    """Of a network that marks bright pixels, whose masks lie a row too deep."""
    model = nn.Sequential(*(nn.Conv2d(*sides, 3, padding=1) for sides in ((1, 8), (8, 8), (8, 1)))).eval()
    with torch.no_grad():
        for conv in model:
            conv.weight.zero_()[:, :, 1, 1] = 1
            conv.bias.zero_()

    def images(data: str, split: str, count: int, seed: int):
        pixels = np.kron(np.eye(3, dtype=np.uint8)[None] * 255, np.ones((count, 4, 4), np.uint8))
        return pixels, np.roll(pixels > 0, 1, axis=1)

    small = dataclasses.replace(examples.EXAMPLES["unet"], test_images=9)
    monkeypatch.setitem(examples.EXAMPLES, "unet", small)
    monkeypatch.setattr(accuracy, "network", lambda data: (model, SPEC, "weights"))
    monkeypatch.setattr(accuracy, "images", images)
    result = study.run("--data", "unet", "--method", "balf", "--flops", "2")
    assert result.exit_code == 0, result.output
    cell = json.loads(next((study.folder / "cells" / "unet").iterdir()).read_text())
    assert 0.7 < cell["dense_accuracy"] < 0.95
    assert cell["difference"] == pytest.approx(cell["accuracy"] - cell["dense_accuracy"])
    assert "fewer parameters: Dice " in result.output
    page = (study.folder / "page.md").read_text()
    assert "Dice:\n\n| method | 2x |" in page
    assert "Accuracy:" not in page


@pytest.mark.parametrize("name", ["resnet20", "mobilenet", "unet"])
def test_networks_give_what_is_scored(name: str) -> None:
    example = examples.EXAMPLES[name]
    model = build_model(str(examples.ROOT / "examples" / example.folder / example.network))
    truth = np.zeros((2, 56, 56), bool) if example.metric == "Dice" else np.zeros(2, int)
    with torch.inference_mode():
        assert example.score(model(torch.randn(2, 1, 56, 56)), truth).shape == (2,)


def test_page_joins_seeds(tmp_path: Path) -> None:
    cell = {
        **{"data": "brain_mri", "method": "hscc", "flops": 6.0, "params": None, "calibration": 16},
        **{"finetune_epochs": 0, "dense_accuracy": 0.95, "dense_standard_error": 0.01, "test_images": 100},
        **{"difference": -0.05, "difference_standard_error": 0.02, "flop_reduction": 6.1, "param_reduction": 2.0},
    }
    cells = [{**cell, "seed": s, "accuracy": a, "standard_error": 0.03} for s, a in ((0, 0.88), (1, 0.92))]
    other = {**cell, "seed": 0, "method": "svd", "accuracy": 0.8, "standard_error": 0.04, "difference": -0.15}
    accuracy_page.write(tmp_path / "p.md", {"brain_mri": [*cells, other]})
    page = (tmp_path / "p.md").read_text()
    assert "## brain_mri, 16 images" in page
    assert "Dense: 95.00 ± 1.00 on 100 test images; seed 0 where no number of seeds is given." in page
    assert "| hscc | 90.00 ± 2.12 (2 seeds) |" in page  # 3 / sqrt(2): the spread of the two seeds' mean is 2 points
    assert "| hscc | -5.00 ± 1.41 (2 seeds) |" in page
    assert "| SVD, activations | +10.00 ± 2.45 |" in page  # sqrt(1.41² + 2²)
    assert "| hscc | 6.10 / 2.00 |" in page
    assert "![Accuracy by FLOP reduction](p-brain_mri-16-images.png)" in page
    assert (tmp_path / "p-brain_mri-16-images.png").exists()
    accuracy_page.write(tmp_path / "p.md", {"fashion_mnist": [{**c, "data": "fashion_mnist"} for c in cells]})
    page = (tmp_path / "p.md").read_text()
    assert "| hscc | 90.00 ± 3.61 (2 seeds) |" in page  # sqrt(3² + 2²): both saw the same test images
    assert "hscc ahead" not in page
