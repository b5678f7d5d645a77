"""Fine-tuning: the student comes nearer its teacher, whatever interrupts it leaves the best weights and no trace."""

from __future__ import annotations

import copy

import hscc
import pytest
import torch
from hscc.fit.finetune import distance
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader


@pytest.fixture
def net(net) -> nn.Sequential:
    """The shared network with outputs as far apart as those of a trained one."""
    with torch.no_grad():
        net[9].weight *= 30
    return net


@pytest.fixture
def student(net, data) -> nn.Sequential:
    model = copy.deepcopy(net)
    hscc.compress_(model, data, hscc.Config(hscc.energy(0.6), factorization="weight", regions=2))
    return model


@pytest.fixture
def shuffled(data) -> DataLoader:
    return DataLoader(torch.cat(data), batch_size=16, shuffle=True)


class Interrupted(list):
    """Batches that are interrupted in the middle of a later reading; the first readings are whole."""

    def __init__(self, batches, readings: int) -> None:
        super().__init__(batches)
        self.left = readings

    def __iter__(self):
        self.left -= 1
        for index, batch in enumerate(super().__iter__()):
            if self.left < 0 and index == 2:
                raise KeyboardInterrupt
            yield batch


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_the_student_comes_nearer(student, net, data) -> None:
    before, taught = weights(student), weights(net)
    student.train()
    student[1].eval()
    student[9].bias.requires_grad_(False)
    modes = [m.training for m in student.modules()]
    state = torch.get_rng_state()
    report = hscc.finetune(student, net, data[:4], epochs=4, validation=data[4:], rate=1e-3)
    assert len(report.training) == 4
    assert len(report.validation) == 5
    assert report.validation[report.best_epoch] == min(report.validation) < 0.5 * report.validation[0]
    assert not report.stopped_early
    changed = {name for name, t in weights(student).items() if not torch.equal(t, before[name])}
    assert changed == {f"{layer}.{part}" for layer in (0, 2, 5) for part in ("v", "u", "bias")}
    assert same(weights(net), taught)
    assert [m.training for m in student.modules()] == modes
    assert [n for n, p in student.named_parameters() if not p.requires_grad] == ["9.bias"]
    assert all(p.grad is None for p in student.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_other_modules_train_when_named(student, net, data) -> None:
    before = weights(student)
    hscc.finetune(student, net, data, epochs=1, also=["9"])
    assert not torch.equal(student[9].weight, before["9.weight"])


def test_worse_weights_are_not_kept(student, net, data) -> None:
    before = weights(student)
    report = hscc.finetune(student, net, data[:4], epochs=9, validation=data[4:], rate=1.0, patience=2)
    assert report.stopped_early
    assert (report.best_epoch, len(report.training)) == (0, 2)
    assert min(report.validation) == report.validation[0]
    assert same(weights(student), before)


def test_the_seed_decides(student, net, shuffled) -> None:
    ends = []
    for seed, noise in ((0, 1), (0, 2), (5, 1)):
        torch.manual_seed(noise)
        model = copy.deepcopy(student)
        hscc.finetune(model, net, shuffled, epochs=2, seed=seed)
        ends.append(weights(model))
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


@pytest.mark.parametrize("validated", [True, False])
def test_an_interrupted_run_goes_on_where_it_stopped(student, net, data, tmp_path, validated: bool) -> None:
    options = {"epochs": 4, "validation": data[4:] if validated else None}
    whole, part = copy.deepcopy(student), copy.deepcopy(student)
    file = tmp_path / "run.safetensors"
    expected = hscc.finetune(whole, net, data[:4], **options)
    with pytest.raises(KeyboardInterrupt):
        hscc.finetune(part, net, Interrupted(data[:4], 2 if validated else 5), checkpoint=file, **options)
    saved = load_file(file)
    assert all(torch.equal(p, saved[f"best/{name}"]) for name, p in part.named_parameters() if f"best/{name}" in saved)
    assert all(p.requires_grad for p in part.parameters())
    assert list(tmp_path.iterdir()) == [file]
    fresh = copy.deepcopy(student)
    assert hscc.finetune(fresh, net, data[:4], checkpoint=file, **options) == expected
    assert same(weights(fresh), weights(whole))
    assert hscc.finetune(part, net, [], checkpoint=file, **options) == expected  # all done: reads no data
    assert same(weights(part), weights(whole))


def test_an_interrupt_before_the_first_epoch_ends_changes_nothing(student, net, data) -> None:
    before = weights(student)
    with pytest.raises(KeyboardInterrupt):
        hscc.finetune(student, net, Interrupted(data, 0), epochs=2)
    assert same(weights(student), before)


def test_files_of_other_runs_are_refused(student, net, data, tmp_path) -> None:
    file = tmp_path / "run.safetensors"
    hscc.finetune(student, net, data[:1], epochs=1, checkpoint=file)
    before = weights(student)
    for options, match in (
        ({"epochs": 2}, r"got a run with \{'epochs': 1, .* expected \{'epochs': 2"),
        ({"epochs": 1, "also": ["9"]}, "got weights of another student"),
    ):
        with pytest.raises(ValueError, match=match):
            hscc.finetune(student, net, data[:1], checkpoint=file, **options)
    model = tmp_path / "model.safetensors"
    hscc.save(student, model)
    with pytest.raises(ValueError, match=r"got hscc\.checkpoint version 2, expected hscc\.finetune 1"):
        hscc.finetune(student, net, data[:1], epochs=1, checkpoint=model)
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(ValueError, match="unreadable or truncated"):
        hscc.finetune(student, net, data[:1], epochs=1, checkpoint=file)
    assert same(weights(student), before)


def test_losses_that_are_no_numbers(student, net, data) -> None:
    before = weights(student)
    told = r"batches: got a loss of nan \(before training\), expected a finite one"
    with pytest.raises(FloatingPointError, match=told):
        hscc.finetune(student, net, [data[0], data[1] / 0], epochs=1)
    assert same(weights(student), before)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"epochs": 0}, "epochs: got 0, expected an integer of at least 1"),
        ({"patience": 0.5}, "patience: got 0.5, expected an integer"),
        ({"rate": -1.0}, r"rate: got -1\.0, expected a positive number"),
        ({"temperature": 0.0}, r"temperature: got 0\.0, expected a positive number"),
        ({"also": ["9", "head"]}, r"also: got unknown modules \['head'\]"),
        ({"batches": []}, "batches: got no batch, expected at least one"),
        ({"validation": []}, "validation: got no batch, expected at least one"),
        ({"batches": iter([torch.zeros(1, 3, 32, 32)])}, "batches: got the one-shot iterator"),
        ({"batches": ["a picture"]}, "batches: got a batch of str, expected a tensor"),
        ({"teacher": nn.Flatten()}, r"student: got outputs \[\(8, 4\)\], expected .* the teacher's \[\(8, 3072\)\]"),
        ({"student": nn.Flatten()}, "student: got a model without HSCConv2d"),
        ({"checkpoint": "no/such/file"}, "checkpoint: got 'no/such/file', expected a file in a folder that exists"),
    ],
)
def test_bad_input(student, net, data, arguments: dict, match: str) -> None:
    before = weights(student)
    arguments = {"student": student, "teacher": net, "batches": data, "epochs": 1} | arguments
    with pytest.raises((TypeError, ValueError, FileNotFoundError), match=match):
        hscc.finetune(**arguments)
    assert same(weights(student), before)


def test_a_student_cannot_teach_itself(student, data) -> None:
    with pytest.raises(ValueError, match="teacher: got a model that holds the student's weights"):
        hscc.finetune(student, student, data, epochs=1)
    with pytest.raises(ValueError, match=r"student: got 0\.v in torch.float16, expected float32 or float64"):
        hscc.finetune(copy.deepcopy(student).half(), student, data, epochs=1)


def test_autocast(student, net, data) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        report = hscc.finetune(student, net, data, epochs=2, validation=data, also=[""], rate=1e-3)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        left = sum(distance([student(x)], [net(x)], 1.0).item() for x in data) / len(data)
    assert min(report.validation) < 0.8 * report.validation[0]
    assert min(report.validation) == pytest.approx(left)  # so no cast of older weights was used
    assert student[0].v.dtype == torch.float32


class Parts(nn.Module):
    """Maps, logits and a count in nested outputs."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> dict:
        maps = self.body[:6](x)
        return {"maps": maps, "rest": (self.body[6:](maps), torch.tensor(len(x)))}


def test_outputs_of_several_kinds(student, net, data) -> None:
    report = hscc.finetune(Parts(student), Parts(net), data, epochs=3, validation=data, rate=1e-3)
    assert min(report.validation) < 0.8 * report.validation[0]


def test_distance() -> None:
    s, t = torch.randn(5, 7), torch.randn(5, 7)
    p, q = (t / 2).softmax(1), (s / 2).softmax(1)
    torch.testing.assert_close(distance([s], [t], 2.0), 4 * (p * (p / q).log()).sum(1).mean())
    torch.testing.assert_close(distance([s], [t], None), ((s - t) ** 2).sum() / (t**2).sum())
    maps, column = torch.randn(2, 3, 4, 4), torch.randn(6, 1)
    for x in (maps, column):
        torch.testing.assert_close(distance([1.5 * x], [x], 2.0), torch.tensor(0.25))
    torch.testing.assert_close(distance([s, maps], [t, maps], 2.0), distance([s], [t], 2.0))
