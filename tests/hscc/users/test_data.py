"""Data of every kind: right, or refused in one sentence."""

from __future__ import annotations

import copy

import hscc
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.hscc.users.networks import Net, config, conv, network, refuses


class Table(nn.Module):
    """Takes a picture and a row of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.table = network(), nn.Linear(5, 3)

    def forward(self, image: Tensor, table: Tensor, flag: bool = False) -> Tensor:
        return self.net(image) + self.table(table)


def test_dicts_give_the_keywords_that_forward_takes(x) -> None:
    batches = [{"image": b, "table": torch.randn(16, 5), "path": ["p"] * 16, "flag": True, "label": 3} for b in x]
    assert hscc.compress_(Table(), batches, config()).flop_reduction >= 3


def test_batches_of_other_kinds_by_an_adapter(x) -> None:
    batches = [(b, torch.randn(16, 5), torch.zeros(16)) for b in x]
    refuses(
        Table(),
        batches,
        "calibration: got a batch of tensor .16, 3, 16, 16., but the model's forward has missing a "
        "required argument: 'table'; forward=lambda model, batch",
        TypeError,
    )
    adapter = lambda model, batch: model(*batch[:2])  # noqa: E731
    model, other = Table(), Table()
    other.load_state_dict(model.state_dict())
    report = hscc.compress_(model, batches, config(), forward=adapter)
    plan = hscc.plan(other, batches, config(), forward=adapter)
    assert hscc.apply_(other, plan, batches) == report
    dense = Table()
    losses = hscc.finetune(model, dense, batches, epochs=1, forward=adapter)
    assert len(losses.validation) == 2
    lists = [([*b], ["text"]) for b in x]
    hscc.compress_(network(), lists, config(), forward=lambda model, batch: model(torch.stack(batch[0])))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (
            [("path", torch.zeros(2, 3, 8, 8))],
            r"got a batch of tuple of \(str, tensor \(2, 3, 8, 8\)\), expected a tensor",
        ),
        ([[["path"]]], r"got a batch of list of \(list of \(str\)\), expected a tensor"),
        ([[]], r"got a batch of list of \(\), expected a tensor"),
        ([[torch.zeros(3, 8, 8)] * 2], r"got a batch of list of \(tensor \(3, 8, 8\), tensor \(3, 8, 8\)\), expected"),
        ([3], "got a batch of int, expected a tensor"),
        ((x for x in ()), "got the one-shot iterator generator, expected data that can be read several times"),
        (torch.utils.data.TensorDataset(torch.zeros(4, 3, 8, 8)), "got the dataset TensorDataset, expected batches"),
        ("images/", "got str, expected data that can be read several times"),
        (3, "got int, expected data that can be read several times"),
        ({"a": 1}, "got dict, expected data that can be read several times"),
    ],
)
def test_data_that_cannot_be_read(data, match: str) -> None:
    refuses(network(), data, match, TypeError)


@pytest.mark.parametrize("options", [{}, {"portable": True}, {"strict": True}])
def test_images_of_several_sizes(tmp_path, options: dict) -> None:
    """Layers have one region then, FLOPs are those of the first batch's images, and images of any size pass."""
    batches = [F.interpolate(torch.randn(8, 3, 6, 6), size=(12 + 2 * i, 20 - i)) for i in range(8)]
    model, fresh = network(), network()
    dense = copy.deepcopy(model)
    report = hscc.compress_(model, batches, config(2, skip=["0"], **options))
    assert report.flop_reduction >= 2
    assert {layer.region_sizes for layer in report.layers} <= {(1,), ()}
    assert any("run at several sizes" in warning for warning in report.warnings) == (not options.get("portable"))
    assert report.flops == hscc.summary(model, batches[0][:1]).flops
    others = F.interpolate(torch.randn(8, 3, 6, 6), size=(31, 17))
    assert (model(others) - dense(others)).norm() < 0.3 * dense(others).norm()
    hscc.save(model, tmp_path / "small.safetensors", report=report)
    hscc.load_(fresh, tmp_path / "small.safetensors")
    assert torch.equal(fresh(others), model(others))


class Detector(nn.Module):
    """Takes a list of images of any size; one head on two maps; gives what scores well in each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv(3, 16), conv(16, 16, stride=2), conv(16, 16)
        self.score = nn.Conv2d(16, 5, 1)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        rows, columns = (max(image.shape[side] for image in images) for side in (1, 2))
        x = torch.stack([F.pad(i, (0, columns - i.shape[2], 0, rows - i.shape[1])) for i in images])
        fine = self.first(x).relu()
        maps = [self.score(self.head(one).relu()).flatten(2) for one in (fine, self.second(fine).relu())]
        scores, labels = torch.cat(maps, 2).max(1)
        return [{"scores": s[s > s.mean()], "labels": own[s > s.mean()]} for s, own in zip(scores, labels, strict=True)]


def test_a_detector() -> None:
    model = Detector().eval()
    dense = copy.deepcopy(model)
    batches = [[F.interpolate(torch.randn(1, 3, 5, 5), size=(12 + i, 18 - j))[0] for i in range(8)] for j in range(6)]
    report = hscc.compress_(model, batches, config(1.5), forward=lambda model, images: model(images))
    assert report.flop_reduction >= 1.5
    found, wanted = ([len(one["scores"]) for one in net(batches[0])] for net in (model, dense))
    assert found == pytest.approx(wanted, rel=0.2)


def test_a_tensor_is_batches(x) -> None:
    models = [network() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    whole = torch.cat(x)
    first, second = hscc.compress_(models[0], whole, config()), hscc.compress_(models[1], [*whole.split(32)], config())
    assert first == second
    refuses(network(), x[0][0], r"calibration: got a tensor of shape \(3, 16, 16\), expected \(N, C, H, W\)")


def test_inference_tensors_and_inference_mode(x) -> None:
    model = network()
    with torch.inference_mode():
        made, other = [b + 0 for b in x], network()
        report = hscc.compress_(model, made, config())
    assert report.warnings == ()
    refuses(other, x, "got '0.weight' made under torch.inference_mode, expected")
    assert hscc.compress_(network(), made, config()).flop_reduction >= 3


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_images(value: float) -> None:
    model, image = network(), torch.full((16, 3, 16, 16), value)
    wanted = model(image)
    report = hscc.compress_(model, [image] * 4, config())
    assert any("was not refitted: its inputs are the same" in warning for warning in report.warnings)
    torch.testing.assert_close(model(image), wanted, rtol=1e-3, atol=1e-3)


def test_rows_of_the_head_that_depend_on_the_data(x) -> None:
    def body(net, x):
        features = net.b(net.a(x).relu()).relu().flatten(2).transpose(1, 2)
        return net.head(features[features.sum(2) > 1.0])

    model = Net(body)
    head = copy.deepcopy(model.head.state_dict())
    report = hscc.compress_(model, x, config())
    assert report.refitted == ()
    assert any("head was not refitted: the number of its inputs depends" in warning for warning in report.warnings)
    assert all(torch.equal(value, model.head.state_dict()[key]) for key, value in head.items())


def test_a_budget_that_cuts_the_network_is_told(x) -> None:
    model = network()
    report = hscc.compress_(model, x, config(300))
    assert any("rank 0 in all regions, so that nothing passes it" in warning for warning in report.warnings)
    assert any("the outputs no longer depend on the images" in warning for warning in report.warnings)
    assert model[6].weight.abs().max() < 10


def test_a_budget_of_flops_that_makes_the_file_grow_is_told() -> None:
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 2)).eval()
    data = [F.interpolate(torch.randn(8, 3, 8, 8), size=64) for _ in range(8)]
    report = hscc.compress_(model, data, hscc.Config(hscc.flops(1.5), sharing=False))
    assert report.bytes > report.dense_bytes
    assert any("index tensors count, and no budget limits bytes" in warning for warning in report.warnings)
