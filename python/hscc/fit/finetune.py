"""Fine-tunes a compressed model without labels: the dense model teaches it (distillation)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from operator import length_hint
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..io.checkpoint import read_metadata
from ..nn.conv2d import HSCConv2d
from ..nn.projection import Projection
from ..observe.data import Calibration, evaluation_mode
from ..observe.values import floating, tensors
from .distance import distance

_KEY, _TYPE, _VERSION = "hscc", "hscc.finetune", 1
_ADAM = ("step", "exp_avg", "exp_avg_sq")  # what the optimizer keeps of each parameter


@dataclass(frozen=True)
class FinetuneReport:
    """Mean losses, epoch by epoch; ``validation`` begins with the one before training.

    Without validation data it is of the training batches after each epoch, where ``training`` is on the way.

    ``best_epoch`` is the epoch whose weights the student holds, counted from 1; 0 is the weights it came with.
    """

    training: tuple[float, ...]
    validation: tuple[float, ...]
    best_epoch: int
    stopped_early: bool

    def to_dict(self) -> dict:
        """Plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Settings:
    """How to train: the keywords that :func:`finetune` passes on.

    Args:
        epochs: passes over the batches.
        also: names of modules to train besides the :class:`HSCConv2d`; "" is the whole student.
        rate: of Adam at the start; it falls to 0 on a cosine over all epochs. A compressed network is near its teacher:
            3e-4 drove the example's away from it.
        temperature: of the softmax of outputs (N, classes), which are compared by the Kullback-Leibler divergence.
            Other outputs, and with None these too, by the mean squared error relative to the teacher's mean square.
        patience: epochs without a lower validation loss after which training stops.
        seed: of the shuffling in a ``DataLoader``, epoch by epoch.
        forward: called with a model and a batch, for batches of other kinds, as for :func:`hscc.compress_`.
        show_progress: bars on standard error.
    """

    epochs: int
    also: Sequence[str] = ()
    rate: float = 5e-5
    temperature: float | None = 1.0
    patience: int = 3
    seed: int = 0
    forward: Callable[[nn.Module, Any], Any] | None = None
    show_progress: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "patience"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: got {value!r}, expected an integer of at least 1")
        for name, value in {"rate": self.rate, "temperature": self.temperature}.items():
            if not (value is None and name == "temperature") and not 0 < value < math.inf:
                raise ValueError(f"{name}: got {value!r}, expected a positive number")


@torch.inference_mode(False)
def finetune(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable,
    *,
    validation: Iterable | None = None,
    checkpoint: str | Path | None = None,
    **settings,
) -> FinetuneReport:
    """Trains a compressed student, in place, to give the outputs of its teacher; no labels are needed.

    Both run in evaluation mode: no dropout, and batch-norm statistics stay. The student ends with the weights of the
    best epoch, or those it came with where none is better, by the loss on the validation data or else on the training
    batches; after an error or an interrupt too, with the best so far.
    Modes and ``requires_grad`` come back in any case. bfloat16 autocast around the call works. To match inner features
    too, give modules that return them beside the outputs. Each process trains by itself.

    Args:
        student: the compressed module.
        teacher: the dense one; takes the same inputs and gives outputs of the same shapes: a tensor, or tuples, lists
            and dicts of them.
        batches: re-iterable inputs as for :func:`hscc.compress_`.
        validation: such inputs to measure the loss on, before training and after each epoch; not the calibration data:
            the student was fitted to them, so its loss there is too low before training. None: the batches.
        checkpoint: file written after each epoch; training goes on from it where it exists.
        settings: the fields of :class:`Settings` by name; ``epochs`` is needed.

    Raises:
        TypeError, ValueError: for what cannot be used, with got and expected.
        FloatingPointError: the loss became NaN or infinite.
    """
    how = Settings(**settings)
    device = Calibration.of(student, batches).device
    lessons = Calibration(batches, device, how.seed, how.show_progress, how.forward, "batches")
    held_out = lessons if validation is None else replace(lessons, data=validation, argument="validation")
    trained = _trained(student, teacher, how.also)
    run = _Run(student, teacher, trained, how, validated=validation is not None)
    file = None if checkpoint is None else Path(checkpoint)
    if file is not None and not file.parent.is_dir():
        raise FileNotFoundError(f"checkpoint: got {str(file)!r}, expected a file in a folder that exists")
    if file is not None and file.exists():
        run.load(file)
    try:
        with _prepared(student, teacher, trained.values()):
            if not run.validation:
                run.validate(held_out, "before training")
            while (epoch := len(run.training)) < how.epochs and not run.waited:
                torch.default_generator.manual_seed(how.seed + epoch)
                label = f"epoch {epoch + 1} of {how.epochs}"
                run.train(lessons, label)
                run.validate(held_out, f"{label}, loss {run.training[-1]:.3g}")
                run.keep_best()
                if file is not None:
                    run.save(file)
    finally:
        run.restore_best()
    return FinetuneReport(tuple(run.training), tuple(run.validation), run.best_epoch, len(run.training) < how.epochs)


class _Run:
    """What changes while training: weights, Adam's moments, losses, the best weights so far."""

    def __init__(self, student, teacher, trained: dict[str, nn.Parameter], how: Settings, validated: bool):
        self.student, self.teacher, self.trained, self.how = student, teacher, trained, how
        self.same = {name: getattr(how, name) for name in ("epochs", "rate", "temperature", "seed")}  # to go on with
        self.same["validation"] = validated
        self.optimizer = torch.optim.AdamW(trained.values(), how.rate, weight_decay=0.0)
        self.training: list[float] = []
        self.validation: list[float] = []
        self.best_epoch, self.best = 0, self._copy()

    def train(self, lessons: Calibration, label: str) -> None:
        epoch, steps = len(self.training), length_hint(lessons.data) or math.inf

        def learn(step: int, loss: Tensor) -> None:
            done = (epoch + min(step / steps, 1)) / self.how.epochs
            self.optimizer.param_groups[0]["lr"] = self.how.rate * (1 + math.cos(math.pi * done)) / 2
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

        self.training.append(self._mean_loss(lessons, label, learn))

    @torch.no_grad()
    def validate(self, held_out: Calibration, label: str) -> None:
        torch.default_generator.manual_seed(self.how.seed)  # the same images each time, where they are drawn
        self.validation.append(self._mean_loss(held_out, label, lambda step, loss: None))

    def keep_best(self) -> None:
        if self.validation[-1] < min(self.validation[:-1]):
            self.best_epoch, self.best = len(self.training), self._copy()

    @property
    def waited(self) -> bool:
        return self.same["validation"] and len(self.training) - self.best_epoch >= self.how.patience

    @torch.no_grad()
    def restore_best(self) -> None:
        for name, parameter in self.trained.items():
            parameter.copy_(self.best[name])

    def save(self, path: Path) -> None:
        """An interrupted write leaves the file of the epoch before."""
        from safetensors.torch import save_file

        tensors = {f"last/{name}": t for name, t in self._copy().items()}
        tensors |= {f"best/{name}": t for name, t in self.best.items()}
        for name, parameter in self.trained.items():  # no state for one that had no gradient
            tensors |= {f"{key}/{name}": t for key, t in self.optimizer.state[parameter].items()}
        header = {"_type": _TYPE, "_version": _VERSION, "settings": self.same, "best_epoch": self.best_epoch}
        header |= {"training": self.training, "validation": self.validation}
        partial = path.with_name(f"{path.name}.partial")
        save_file({key: t.contiguous() for key, t in tensors.items()}, partial, {_KEY: json.dumps(header)})
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        """Goes on where the run of a file stopped; ValueError when it is no such file or of another run."""
        from safetensors.torch import load_file

        try:
            header = json.loads(read_metadata(path).get(_KEY, "{}"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: got damaged hscc metadata ({error}), expected a fine-tuning file") from error
        if (header.get("_type"), header.get("_version")) != (_TYPE, _VERSION):
            raise ValueError(
                f"{path}: got {header.get('_type')} version {header.get('_version')}, expected {_TYPE} {_VERSION}"
            )
        if header["settings"] != self.same:
            raise ValueError(f"{path}: got a run with {header['settings']}, expected {self.same} to go on with it")
        tensors = load_file(path)
        shapes = {f"best/{name}": p.shape for name, p in self.trained.items()}
        if shapes != {key: t.shape for key, t in tensors.items() if key.startswith("best/")}:
            raise ValueError(f"{path}: got weights of another student, expected those of {list(self.trained)}")
        self.training, self.validation = header["training"], header["validation"]
        self.best_epoch = header["best_epoch"]
        self.best = {name: tensors[f"best/{name}"].to(p.device) for name, p in self.trained.items()}
        for name, parameter in self.trained.items():
            parameter.data.copy_(tensors[f"last/{name}"])
            self.optimizer.state[parameter] = {
                key: tensors[f"{key}/{name}"].to("cpu" if key == "step" else parameter.device)
                for key in _ADAM
                if f"{key}/{name}" in tensors
            }

    def _copy(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.trained.items()}

    def _mean_loss(self, data: Calibration, label: str, learn: Callable) -> float:
        total, images = 0.0, 0
        for step, batch in enumerate(data.batches(label)):
            with torch.no_grad():
                wanted = floating(data.forward(self.teacher, batch))
            torch.clear_autocast_cache()  # it holds casts of the weights before the last step
            loss = distance(floating(data.forward(self.student, batch)), wanted, self.how.temperature)
            learn(step, loss)
            size = len(next(t for t in tensors(batch) if t.ndim))
            total = total + loss.detach() * size
            images += size
        mean = float(total / images)
        if not math.isfinite(mean):
            raise FloatingPointError(f"{data.argument}: got a loss of {mean} ({label}), expected a finite one")
        return mean


def _trained(student: nn.Module, teacher: nn.Module, also: Sequence[str]) -> dict[str, nn.Parameter]:
    """Name -> each parameter to train, once."""
    modules = dict(student.named_modules(remove_duplicate=False))
    if unknown := sorted(set(also) - set(modules)):
        raise ValueError(f"also: got unknown modules {unknown}, expected names of modules of the student")
    ours = (HSCConv2d, Projection)
    chosen = {id(p) for name, m in modules.items() if isinstance(m, ours) or name in also for p in m.parameters()}
    trained = {name: p for name, p in student.named_parameters() if id(p) in chosen}
    if not trained:
        raise ValueError("student: got a model without HSCConv2d, expected a compressed one, or names in also")
    if any(id(p) in chosen for p in teacher.parameters()):
        raise ValueError("teacher: got a model that holds the student's weights, expected the dense model kept apart")
    for name, p in trained.items():
        if p.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"student: got {name} in {p.dtype}, expected float32 or float64 (autocast is fine)")
    return trained


@contextmanager
def _prepared(student: nn.Module, teacher: nn.Module, trained: Iterable[nn.Parameter]) -> Iterator[None]:
    """Evaluation mode, gradients of the trained parameters only, and a random state of its own, for a while."""
    flags = [(p, p.requires_grad) for p in student.parameters()]
    try:
        student.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        with evaluation_mode(student, teacher), torch.random.fork_rng(devices=[]), torch.enable_grad():
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
            parameter.grad = None
