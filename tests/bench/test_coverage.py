"""Networks of all kinds compress, compile and export; docs/coverage.md is what came out of that."""

from __future__ import annotations

import json

import hscc
import pytest
import torch
from torch import Tensor, nn

from bench.coverage import __main__ as command
from bench.coverage import check, page
from bench.coverage.networks import NETWORKS, OWN, Network
from bench.coverage.packages import installed, package

NO_CNN = ("vit_", "swin", "maxvit", "mvit", "quantized_", "mc3", "r3d", "r2plus1d", "s3d")  # 2-D and of floats


@pytest.mark.parametrize("name", [name for name, network in NETWORKS.items() if network.quick])
def test_quick_ones(name: str) -> None:
    """In Inductor's place a backend that writes no C++: the same graph, the same fake kernels."""
    needed = NETWORKS[name].package
    if needed != OWN and not installed(needed):
        pytest.skip(f"{needed} is not installed")
    result = check.check(name, "aot_eager", images=16)
    assert result.outcome == "compressed", result.told
    assert 0 < result.taken <= result.layers
    assert result.layers == result.taken + sum(count for count, _ in result.reasons.values())
    assert result.dense_flops >= result.reduction * result.flops
    assert result.error < 1
    assert result.compile.works, result.compile.told
    assert result.export.works, result.export.told
    assert result.onnx.works or result.onnx.dense, result.onnx.told


def test_why_two_inputs_give_no_onnx_file() -> None:
    network = NETWORKS["two inputs"]
    model, images = network.build().eval(), next(check.batches(network))
    with pytest.raises(ValueError, match=r"example: got .* which the model does not take"):
        check.in_onnx(model, images)


def linear() -> Network:
    return Network(lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).double(), OWN, "Own", 4)


def tiny() -> Network:
    return Network(lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)), OWN, "Own", 8)


def test_a_refusal_is_a_sentence(monkeypatch) -> None:
    def refuses(*args, **rest) -> None:
        raise ValueError("model: got nothing to compress, expected an nn.Conv2d that can be (it has no convolution)")

    monkeypatch.setattr(hscc, "compress_", refuses)
    result = check.check("none", "eager", tiny())
    assert result.outcome == "refused"
    assert result.told.startswith("model: got nothing to compress, expected")


@pytest.mark.parametrize("error", [RuntimeError("shapes cannot be multiplied"), ValueError("max() arg is empty")])
def test_a_defect_is_no_refusal(monkeypatch, error: Exception) -> None:
    def fails(*args, **rest) -> None:
        raise error

    monkeypatch.setattr(hscc, "compress_", fails)
    result = check.check("defect", "eager", tiny())
    assert result.outcome == "failed"
    assert str(error) in result.told


def test_the_first_budget_that_can_be_is_taken(monkeypatch) -> None:
    asked, real = [], hscc.compress_

    def far(model, data, config, **rest):
        asked.append(config.budget.flops)
        if config.budget.flops > 1.25:
            raise ValueError("budget: got flops=2, expected at most 1.30: the layers that ...")
        return real(model, data, config, **rest)

    monkeypatch.setattr(hscc, "compress_", far)
    result = check.check("hard", "eager", tiny())
    assert asked == [2, 1.5, 1.25]
    assert result.reduction == 1.25
    assert result.dense_flops >= 1.25 * result.flops


def test_what_differs_does_not_work() -> None:
    model, inputs = nn.Sequential(nn.Conv2d(3, 4, 3)), (torch.randn(2, 3, 8, 8),)

    def off(net: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[list[Tensor], str]:
        return [1.001 * y for y in check.outputs(net, inputs)], ""

    def cropped(net: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[list[Tensor], str]:
        return [y[:1] for y in check.outputs(net, inputs)], ""

    def not_a_number(net: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[list[Tensor], str]:
        return [y * float("nan") for y in check.outputs(net, inputs)], ""

    for form, told in ((off, "off by 1.0e-03"), (cropped, "gives [(1, 4, 6, 6)]"), (not_a_number, "off by nan")):
        found = check.compared(form, model, model, inputs)
        assert (found.works, found.told, found.dense) == (False, told, True)


def test_torchvision_has_no_other_family() -> None:
    """So that "all families" on the page are all that there are."""
    if not installed("torchvision"):
        pytest.skip("torchvision is not installed")
    families = tuple(f for network in NETWORKS.values() if network.family for f in network.family.split(", "))
    names = [name for name in package("torchvision").models.list_models() if not name.startswith(NO_CNN)]
    assert len(names) > 60
    assert [name for name in names if not name.startswith(families)] == []


def test_the_page_is_of_its_results() -> None:
    found = json.loads(command.RESULTS.read_text(encoding="utf-8"))
    assert set(found["networks"]) <= set(NETWORKS)
    assert command.PAGE.read_text(encoding="utf-8") == page.text(found), "run make coverage"


def test_the_page_tells_what_failed() -> None:
    found = json.loads(command.RESULTS.read_text(encoding="utf-8"))
    results = {name: found["networks"][name] for name in ("resnet18", "alexnet")}
    results["resnet18"] |= {"outcome": "failed", "told": "RuntimeError: a | b\nmore"}
    results["alexnet"]["export"] |= {"works": False, "told": "off by 1e-2"}
    lines = page.text({**found, "networks": results}).splitlines()
    assert "| resnet18 | failed | RuntimeError: a / b |" in lines
    assert "| alexnet | export | off by 1e-2 |" in lines
    assert f"| compressed | 1 of {len(NETWORKS)} |" in lines
    assert f"| not run | {len(NETWORKS) - 2} |" in lines
    assert any(line.startswith("| CNN families of torchvision, compressed or refused | 1 of ") for line in lines)
    assert any(line.startswith("| export works") and "0 of 1" in line for line in lines)
    assert (
        len({line.count("|") for line in lines if line.startswith(("| resnet18 *", "| alexnet *", "| network | im"))})
        == 1
    )


def test_a_network_without_a_result_is_told(monkeypatch, tmp_path, capsys) -> None:
    """And the results of others are kept, so that the next call needs only that one."""
    found = json.loads(command.RESULTS.read_text(encoding="utf-8"))

    def dies(name: str, backend: str) -> dict:
        if name == "alexnet":
            raise RuntimeError("alexnet: exit status -9")
        return found["networks"][name]

    paths = {"--results": tmp_path / "results.json", "--page": tmp_path / "page.md"}
    options = ["--backend", found["backend"], *(str(part) for item in paths.items() for part in item)]
    monkeypatch.setattr(command, "installed", lambda name: True)
    monkeypatch.setattr(command, "NETWORKS", {name: NETWORKS[name] for name in ("alexnet", "resnet18")})
    monkeypatch.setattr(command, "one", dies)
    assert command.main(options) == 1
    assert "alexnet: exit status -9" in capsys.readouterr().err
    assert "| alexnet * | 3 x 64 x 64 | not run |" in paths["--page"].read_text(encoding="utf-8")
    monkeypatch.setattr(command, "one", lambda name, backend: found["networks"][name])
    with pytest.raises(SystemExit):
        command.main([*options, "--network", "alexnet", "--backend", "other"])
    assert f"expected {found['backend']} as the other rows have it" in capsys.readouterr().err
    assert command.main([*options, "--network", "alexnet"]) == 0
    assert {*json.loads(paths["--results"].read_text(encoding="utf-8"))["networks"]} == {"alexnet", "resnet18"}
    assert "not run" not in next(line for line in paths["--page"].read_text().splitlines() if "| alexnet" in line)
