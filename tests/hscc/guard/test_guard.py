"""The guard: flags what is foreign, at its rate of false alarms; leaves the model as it was; survives a file."""

from __future__ import annotations

import copy
import json
import sys
import threading

import hscc
import pytest
import torch
from hscc.guard.guard import Guard
from hscc.guard.guarded import GuardedModel
from hscc.io.checkpoint import load_guard, read_metadata
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 80, 3, padding=1), nn.BatchNorm2d(80), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Conv2d(80, 20, 3, padding="same", bias=False), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 4)),
    ).eval()


def smooth(count: int, seed: int) -> Tensor:
    """Smooth images with a dark border, some brighter than others: float32 (count, 3, 32, 32)."""
    generator = torch.Generator().manual_seed(seed)
    images = nn.functional.interpolate(torch.randn(count, 3, 8, 8, generator=generator), size=(32, 32), mode="bilinear")
    images = images * (0.8 + 0.4 * torch.rand(count, 1, 1, 1, generator=generator))
    images[..., :6] = 0
    return images


@pytest.fixture(scope="module")
def calibration() -> Tensor:
    return smooth(400, 2)


@pytest.fixture(scope="module")
def small(calibration) -> nn.Module:
    """A compressed model; nothing changes it."""
    model = net()
    hscc.compress_(model, calibration[:64], hscc.Config(hscc.flops(3)))
    return model


@pytest.fixture(scope="module")
def guard(small, calibration) -> Guard:
    return Guard.fit(small, calibration)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


@torch.no_grad()
def scores(guard: Guard, model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([guard(model, batch)[1] for batch in images.split(250)])


@pytest.mark.parametrize("compressed", [True, False])
def test_false_alarms_on_new_images(small, calibration, compressed) -> None:
    model = small if compressed else net()
    new = smooth(3000, 3)
    for share in (0.05, 0.2):
        guard = Guard.fit(model, calibration, share)
        spread = (share * (1 - share) * (1 / len(calibration) + 1 / len(new))) ** 0.5
        found = float((scores(guard, model, new) > guard.threshold).double().mean())
        assert found == pytest.approx(share, abs=3 * spread)
        assert guard.threshold == guard.threshold_at(share) < guard.threshold_at(share / 2)


FOREIGN = {
    "uniform": lambda x: torch.rand_like(x) * 2 - 1,
    "gaussian": lambda x: torch.randn_like(x),
    "inverted": lambda x: 1 - x,
    "brighter": lambda x: x + 1,
    "less contrast": lambda x: 0.1 * x,
    "blank": lambda x: torch.zeros_like(x),
    "not a number": lambda x: x.clone().index_fill_(3, torch.tensor([9]), float("nan")),
    "infinite": lambda x: x.clone().index_fill_(3, torch.tensor([9]), float("inf")),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_images_are_flagged(guard, small, kind) -> None:
    usual, foreign = scores(guard, small, smooth(200, 4)), scores(guard, small, FOREIGN[kind](smooth(200, 5)))
    assert not foreign.isnan().any()
    assert float((foreign[:, None] > usual).double().mean()) > 0.99  # AUROC
    assert float((foreign > guard.threshold).double().mean()) > 0.95


def test_what_only_the_layers_see(guard, small, calibration) -> None:
    """The same values at other places: a guard of grey levels alone is blind to it."""
    images = smooth(200, 5)
    shuffled = images.flatten(2)[:, :, torch.randperm(1024)].view_as(images)
    one = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    blind = Guard.fit(one, calibration)
    assert (blind.layers, len(guard.layers)) == ((), 1)
    seen, unseen = (scores(g, model, shuffled) > g.threshold for g, model in ((guard, small), (blind, one)))
    assert float(seen.double().mean()) > 0.8
    assert float(unseen.double().mean()) < 0.3


def test_one_forward_whose_outputs_are_the_models(guard, small) -> None:
    calls = []
    handle = small[0].register_forward_hook(lambda *args: calls.append(1))
    before, images = hooks(small), smooth(5, 6)
    try:
        outputs, found = guard(small, images)
        assert len(calls) == 1
        assert hooks(small) == before
    finally:
        handle.remove()
    assert torch.equal(outputs, small(images))
    assert (found.shape, found.dtype, found.requires_grad) == ((5,), torch.float32, False)
    assert outputs.requires_grad
    torch.testing.assert_close(found, torch.cat([guard(small, image[None])[1] for image in images]))


def test_no_hook_is_left_by_a_call_that_fails(guard, small) -> None:
    with pytest.raises(ValueError, match="x: got shape"):
        guard(small, torch.zeros(1, 7, 32, 32))
    assert hooks(small) == 0


def test_threads_share_a_model(guard, small) -> None:
    """Each with images of its own; the interpreter is made to switch all the time."""
    images = [smooth(3, seed) for seed in range(8)]
    wanted = [guard(small, x)[1] for x in images]
    wrong, start = [], threading.Barrier(len(images))

    def work(x: Tensor, expected: Tensor) -> None:
        start.wait()
        for _ in range(40):
            found = guard(small, x)[1]
            if not torch.equal(found, expected):
                wrong.append((found, expected))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(images, wanted, strict=True)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
    assert hooks(small) == 0


def test_half_precision(small, calibration) -> None:
    model = copy.deepcopy(small).half()
    guard = Guard.fit(model, [batch.half() for batch in calibration.split(50)])
    usual, foreign = (scores(guard, model, x.half()) for x in (smooth(300, 4), FOREIGN["inverted"](smooth(50, 5))))
    assert usual.dtype == torch.float32
    assert float((usual > guard.threshold).double().mean()) == pytest.approx(0.05, abs=0.05)
    assert (foreign > guard.threshold).all()


def test_fused_and_compiled_models_score_alike(guard, small) -> None:
    images = smooth(20, 6)
    fused = copy.deepcopy(small)
    assert hscc.fuse_(fused)
    torch.testing.assert_close(guard(fused, images)[1], guard(small, images)[1], rtol=1e-3, atol=1e-3)
    model = copy.deepcopy(small)
    model.compile(backend="eager")
    for compiled in (model, torch.compile(small, backend="eager")):
        compiled(images)
        torch.testing.assert_close(guard(compiled, images)[1], guard(small, images)[1])


def test_other_sizes(guard, small) -> None:
    """They score, high or low, and are no error."""
    for size in ((8, 200), (33, 400), (90, 90)):
        assert guard(small, torch.zeros(2, 3, *size))[1].shape == (2,)


def test_a_file_keeps_it(guard, small, tmp_path) -> None:
    path, images = tmp_path / "m.safetensors", smooth(20, 7)
    hscc.save(small, path, guard=guard)
    model = net()
    hscc.load_(model, path)
    loaded = load_guard(path)
    assert repr(loaded) == repr(guard)
    assert torch.equal(loaded(model, images)[1], guard(small, images)[1])
    assert loaded.threshold == pytest.approx(guard.threshold, rel=1e-6)
    hscc.save(small, path)
    assert load_guard(path) is None
    save_file(net().state_dict(), path)
    assert load_guard(path) is None


def test_a_state_is_tensors_and_json(guard) -> None:
    tensors, header = guard.state_dict()
    assert all(isinstance(tensor, Tensor) for tensor in tensors.values())
    assert repr(Guard.from_state(tensors, json.loads(json.dumps(header)))) == repr(guard)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors, header: header.update(_version=9), "got hscc.guard version 9, expected hscc.guard version 1"),
        (lambda tensors, header: header.pop("layers"), "got a damaged state"),
        (lambda tensors, header: tensors.pop("0.matrix"), "got a damaged state"),
        (
            lambda tensors, header: tensors.update({"0.matrix": torch.eye(3)}),
            "got matrices and offsets of unlike sizes",
        ),
        (lambda tensors, header: tensors.update(held_out=torch.zeros(3)), "got 3 images, expected at least 19"),
    ],
)
def test_damaged_states(guard, small, tmp_path, change, told) -> None:
    tensors, header = guard.state_dict()
    change(tensors, header)
    with pytest.raises(ValueError, match=told):
        Guard.from_state(tensors, header)
    hscc.save(small, path := tmp_path / "m.safetensors", guard=guard)
    stored = load_file(path)
    texts = read_metadata(path)
    kept = {key: tensor for key, tensor in stored.items() if not key.startswith("guard:")}
    kept |= {f"guard:{key}": tensor for key, tensor in tensors.items()}
    save_file(kept, path, {**texts, "hscc": json.dumps({**json.loads(texts["hscc"]), "guard": header})})
    with pytest.raises(ValueError, match=rf"m.safetensors: guard: {told}"):
        load_guard(path)


def test_guarded_counts(guard, small) -> None:
    model, images = GuardedModel(small, guard).eval(), torch.cat([smooth(10, 8), smooth(10, 9) + 1])
    assert len(model.scores) == model.flagged == 0
    for batch in images.split(4):
        assert torch.equal(model(batch), small(batch))
    assert torch.equal(model.scores[:4], guard(small, images[:4])[1])
    assert 10 <= model.flagged <= 14


def test_bad_input(guard, small, calibration) -> None:
    with pytest.raises(ValueError, match="model: got one in training mode"):
        guard(net().train(), calibration[:2])
    with pytest.raises(TypeError, match="x: got list, expected a tensor"):
        guard(small, [calibration[0]])
    for x in (calibration[0], calibration[:2].byte()):
        with pytest.raises(ValueError, match=r"x: got .*, expected floating point \(N, C, H, W\)"):
            guard(small, x)
    with pytest.raises(ValueError, match=r"model: got one without '.*', expected one as the guard was fitted to"):
        guard(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), calibration[:2])
    with pytest.raises(ValueError, match=r"got 18 images, expected at least 19 for false_alarms=0\.05"):
        Guard.fit(small, calibration[:18])
    with pytest.raises(ValueError, match="got 9 images, expected at least 10"):
        Guard.fit(small, calibration[:9], 0.3)
    with pytest.raises(ValueError, match="false_alarms: got 5, expected a share between 0 and 1"):
        Guard.fit(small, calibration, 5)
    with pytest.raises(ValueError, match="got 2 images with NaN or infinite activations"):
        Guard.fit(small, torch.cat([calibration[:30], torch.full((2, 3, 32, 32), float("nan"))]))
    with pytest.raises(TypeError, match="expected data that can be read several times"):
        Guard.fit(small, iter(calibration.split(8)))
    with pytest.raises(TypeError, match="x: got dict, expected a tensor"):
        Guard.fit(small, [{"input": calibration}])


class Odd(nn.Module):
    """Layers that see no row an image, a keyword, or are called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice, self.head = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 2)
        self.tokens, self.alone = nn.Linear(8, 8), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.twice(self.twice(self.stem(x)).relu()).relu()
        weight = self.alone(torch.ones(4)).sigmoid()
        tokens = self.tokens(y.flatten(2).transpose(1, 2))
        return {"logits": self.head(input=tokens.mean(1) * weight)}


def test_odd_models(calibration) -> None:
    model = Odd().eval()
    guard = Guard.fit(model, [(calibration[:50], None), (calibration[50:60], None)])
    assert guard.layers == ("twice",)
    outputs, found = guard(model, calibration[:3])
    assert outputs.keys() == {"logits"}
    assert found.shape == (3,)
    single = Guard.fit(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), calibration[:40])
    assert single.layers == ()


def test_images_that_never_vary(small) -> None:
    """No division by nothing: what rounding changes is near, anything else is far."""
    guard = Guard.fit(small, torch.ones(40, 3, 32, 32))
    usual, other = guard(small, torch.ones(1, 3, 32, 32))[1], guard(small, smooth(1, 3))[1]
    assert max(float(usual), guard.threshold) < 1 < 100 < float(other)
