"""The page of a small compressed network: parsed, and opened in a browser where there is one."""

from __future__ import annotations

import copy
import html
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import hscc
import numpy as np
import pytest
import torch
from hscc.app import cli
from hscc.app.report import layers, page, times
from hscc.data.spec import METADATA_KEY, ImageSpec
from hscc.evaluation.comparison import Comparison
from hscc.evaluation.outputs import Outputs
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from hscc_kernels import ClusterFactors, RegionFactors
from tests.hscc.app.conftest import MODEL
from tests.hscc.nn import test_forms as forms
from tests.hscc.nn import test_groups as groups

EVIL = "<script>alert(1)</script>"
CLASSES = ("a", EVIL, "$c$", "d")
SECTIONS = ["verdict", "trade-offs", "classes", "maps", "ranks", "times", "disagreements", "notes"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(times, "SECONDS", 0.02)
        yield


class Page(HTMLParser):
    """Sections, words and whatever could load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections, self.words, self.tags, self.loads = [], [], [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())
        self.loads += re.findall(r"url\(([^)]*)\)|@import", text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if tag == "section" and name == "id":
                self.sections.append(value)
            if name in ("src", "href", "srcset", "data", "action", "xlink:href"):
                self.loads.append(value)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def outputs(seed: int, labels: np.ndarray) -> Outputs:
    logits = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(seed))
    logits[torch.arange(len(labels)), torch.from_numpy(labels)] += 3
    return Outputs(logits.double().softmax(1).numpy(), labels)


@pytest.fixture(scope="module")
def material() -> page.Material:
    """Everything that a page can have."""
    from tests.hscc.conftest import small_net

    torch.manual_seed(1)
    dense = small_net().eval()
    generator = torch.Generator().manual_seed(2)
    images = torch.nn.functional.interpolate(torch.randn(48, 3, 8, 8, generator=generator), size=(32, 32))
    images[..., :6] = 0
    model = copy.deepcopy(dense)
    report = hscc.compress_(model, list(images.split(8)), hscc.Config(hscc.flops(4), clusters=2))
    labels = np.arange(80) % 4
    comparison = Comparison.of(outputs(0, labels), outputs(1, labels), CLASSES).to_dict()
    point = {"method": "hscc", "flop_reduction": 4.0, "difference": -0.01, "difference_standard_error": 0.002}
    far = {"method": EVIL, "flop_reduction": 20.0, "difference": -0.4, "latency_ms": 1.0}
    return page.Material(
        dense=dense,
        model=model,
        report=report.warned(f"one of {EVIL}"),
        calibration=list(images.split(8)),
        images=np.random.default_rng(0).integers(0, 255, (80, 20, 30, 3), dtype=np.uint8),
        comparison=comparison,
        points=[{**point, "latency_ms": 2.0, "chosen": True}, far],
        latency=(3.0, 1.5, 1),
        title=f"model {EVIL}",
        command="hscc report --model 'a b.py'",
    )


@pytest.fixture(scope="module")
def text(material: page.Material) -> str:
    return page.render(material)


def test_everything_is_there_in_order(material: page.Material, text: str) -> None:
    found = Page(text)
    assert found.sections == SECTIONS
    report = material.report
    for number in (f"{report.flop_reduction:.2f}×", f"{report.parameter_reduction:.2f}×", "2.00×", "3.00 → 1.50 ms"):
        assert number in found.text
    assert f"{report.dense_flops / 1e6:,.2f} → {report.flops / 1e6:,.2f} million" in found.text
    assert f"eta {2 / report.flop_reduction:.2f}" in found.text
    for layer in report.layers:
        assert f"{100 * (1 - layer.error):.2f}" in found.text
        for ranks in layer.ranks:
            assert ", ".join("dense" if rank is None else str(rank) for rank in ranks) in found.words
    comparison = material.comparison
    assert comparison["verdict"][1:] in found.text
    for one in comparison["verdicts"]:
        assert one["answer"] in found.text
        assert f"{one['low']:.2f} to {one['high']:.2f}".replace("-", "−") in found.text
    for row in comparison["confusion_after"]:
        assert " ".join(map(str, row)) in found.text
    assert found.tags.count("figure") == 2 + 1 + 2 * 3 + min(len(comparison["disagreements"]), 12)
    assert material.command in found.text


def test_nothing_loads_from_outside_and_names_stay_text(text: str) -> None:
    found = Page(text)
    assert found.loads
    assert all(load.startswith(("data:image/png;base64,", "#")) for load in found.loads)
    assert "script" not in found.tags
    assert EVIL not in text
    assert f"class {EVIL}" in found.text
    assert "$c$" in found.text
    assert len(text) < 3e6
    ids = re.findall(r' id="([^"]*)"', re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL))
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("without", "left"),
    [
        ({"comparison": None}, ["verdict", "trade-offs", "maps", "ranks", "times", "notes"]),
        ({"points": ()}, [name for name in SECTIONS if name != "trade-offs"]),
        ({"images": None}, [name for name in SECTIONS if name != "disagreements"]),
        ({"calibration": ()}, [name for name in SECTIONS if name != "times"]),
        ({"report": None}, [name for name in SECTIONS if name != "times"]),
        (
            {
                **dict.fromkeys(("comparison", "report", "images", "latency", "command")),
                "points": (),
                "calibration": (),
            },
            ["verdict", "maps", "ranks", "notes"],
        ),
    ],
)
def test_what_is_missing_leaves_no_trace(material: page.Material, without: dict, left: list[str]) -> None:
    found = Page(page.render(replace(material, **without)))
    assert found.sections == left
    assert "None" not in found.text
    assert "nan" not in found.text


def test_a_model_that_was_not_compressed_by_us(material: page.Material) -> None:
    found = Page(page.render(page.Material(material.dense, material.dense, calibration=material.calibration[0])))
    assert found.sections == ["verdict", "notes"]


def test_trials_are_points(material: page.Material) -> None:
    trial = {"flop_reduction": 3.0, "parameter_reduction": 2.0, "drop": 0.2, "ms": 2.5, "chosen": True}
    tried = hscc.report.Trial(limit=3.0, bound=0.4, samples=100, holds=True, **trial)
    found = page._trials(replace(material.report, trials=(tried,)))
    assert found == [{"method": "hscc", "flop_reduction": 3.0, "difference": -0.002, "latency_ms": 2.5, "chosen": True}]


def test_wrong_material_is_refused(material: page.Material) -> None:
    with pytest.raises(ValueError, match=r"points: got .*, expected dicts with method, flop_reduction, difference"):
        page.render(replace(material, points=[{"method": "hscc"}]))
    with pytest.raises(ValueError, match="got a model in training mode"):
        page.render(replace(material, dense=copy.deepcopy(material.dense).train()))


def test_an_interrupt_leaves_the_old_page(material: page.Material, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def interrupt(*paths) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        page.write(page.Material(material.dense, material.model), path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("report.html", "old")]


def test_energy_and_correlations_are_those_of_the_networks(material: page.Material) -> None:
    shown = {name: layers.Layer.of(name, m) for name, m in layers.compressed(material.model).items()}
    seen = layers.look(material.dense, material.model, shown, material.calibration)
    images = torch.cat(list(material.calibration))[: layers.IMAGES]
    with torch.no_grad():
        for name in ("0", "2"):  # a ReLU follows
            end = int(name) + 2
            before, after = (m[:end](images).double() for m in (material.dense, material.model))
            labels = torch.from_numpy(shown[name].labels)
            for region, kept in enumerate(seen[name].kept):
                y, z = (t[..., labels == region] for t in (before, after))
                spread = (y - y.mean((0, 2), keepdim=True)).square().sum()
                assert kept == pytest.approx(float(1 - (y - z).square().sum() / spread), abs=1e-5)
        y = material.dense[:1](images)[..., torch.from_numpy(shown["0"].labels) == shown["0"].region]
    expected = np.corrcoef(y.movedim(1, 0).flatten(1).numpy())[shown["0"].order][:, shown["0"].order]
    assert np.abs(seen["0"].correlation - expected).mean() < 0.05  # of samples
    for layer in material.report.layers:
        assert shown[layer.name].ranks == layer.ranks


def test_a_matrix_has_the_channels_of_a_cluster_side_by_side() -> None:
    channels = torch.tensor([0, 2]), torch.tensor([1, 3])
    clusters = (ClusterFactors(channels[0], 0, torch.ones(2, 1)), ClusterFactors(channels[1], 1, None))
    parts = (RegionFactors(torch.arange(3), clusters), RegionFactors(torch.arange(3), clusters))
    labels = torch.tensor([[0, 0, 1]])
    module = hscc.HSCConv2d.from_conv(nn.Conv2d(2, 4, 1), parts, torch.ones(3, 2), torch.zeros(2, 4), labels)
    layer = layers.Layer.of("x", module)
    assert (layer.region, layer.order.tolist(), layer.bounds) == (0, [0, 2, 1, 3], (0.5,))
    assert (layer.ranks, layer.totals, layer.squeeze) == (((1, None), (1, None)), (3, 3), 0)
    assert layer.labels.tolist() == labels.tolist()


@pytest.mark.parametrize("network", [forms.Net, groups.Net])
def test_layers_of_other_forms(network: type[nn.Module]) -> None:
    """Transposed, linear and grouped ones; of groups the first is shown."""
    torch.manual_seed(0)
    dense, x = network().eval(), nn.functional.interpolate(torch.randn(32, 3, 6, 6), size=14)
    model = copy.deepcopy(dense)
    found = hscc.compress_(model, x.split(16), hscc.Config(hscc.flops(1.5)))
    material = page.Material(dense, model, found, x.split(16))
    text = page.render(material)
    timed = {own.name for own in times.measure(dense, model, found, x[:1], 0.1)}
    assert timed == {name for name, m in dense.named_modules() if name in timed}
    assert not any(name.endswith(".conv") for name in timed)
    if network is groups.Net:
        shown = {name: layers.Layer.of(name, m) for name, m in layers.compressed(model).items()}
        assert {name: layer.groups for name, layer in shown.items()}["few"] == 2
        assert ", first of 2 groups" in text
        assert 0.5 < layers.look(dense, model, shown, x.split(16))["few"].all_kept <= 1


def test_times_are_of_every_convolution_in_order(material: page.Material) -> None:
    found = times.measure(material.dense, material.model, material.report, material.calibration[0][:1], 0.1)
    assert [one.name for one in found] == ["0", "2", "5"]
    assert all(one.dense_ms > 0 and one.ms > 0 for one in found)
    one = times.LayerTime("x", 6.0, 2.0, 4.0)
    assert (one.speedup, one.eta) == (3.0, 0.75)


MEASURE = """
<!doctype html><body style="margin:0"><pre></pre>
<iframe width={width} height=900 style="border:0" srcdoc="{page}"></iframe>
<script>
onload = () => {{
  const inner = document.querySelector("iframe").contentDocument, root = inner.documentElement
  const figures = [...inner.querySelectorAll("svg.chart, figure img, .map, .matrix")]
  const style = (e, name) => getComputedStyle(e).getPropertyValue(name)
  document.querySelector("pre").textContent = JSON.stringify({{
    width: root.scrollWidth, view: root.clientWidth,
    sizes: figures.map(e => e.getBoundingClientRect()).map(r => Math.min(r.width, r.height)),
    page: style(inner.body, "background-color"), ink: style(inner.body, "color"),
    chart: style(inner.querySelector(".chart text"), "fill"), sections: inner.querySelectorAll("section").length}})
}}
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(text: str, tmp_path: Path, width: int, scheme: str) -> None:
    (tmp_path / "outer.html").write_text(MEASURE.format(width=width, page=html.escape(text)))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--blink-settings=preferredColorScheme={int(scheme == 'light')}", "--enable-logging=stderr"]
    command += [
        "--disable-gpu",
        f"--window-size={max(width, 600)},900",
        "--dump-dom",
        (tmp_path / "outer.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    found = json.loads(html.unescape(re.search(r"<pre>(.*?)</pre>", done.stdout)[1]))
    assert found["sections"] == len(SECTIONS)
    assert found["view"] == width
    assert found["width"] <= width, "it scrolls sideways"
    assert min(found["sizes"]) > 50
    light = {name: sum(map(int, re.findall(r"\d+", found[name])[:3])) for name in ("page", "ink", "chart")}
    assert (light["page"] > light["ink"]) == (scheme == "light")
    assert (light["page"] > light["chart"]) == (scheme == "light")


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A model file, dense and compressed weights, 24 images in class folders."""
    root = tmp_path_factory.mktemp("report")
    spec = ImageSpec((16, 16), 1, (0.5,), (0.25,), ("<b>bright", "dark"))
    (root / "model.py").write_text(MODEL)
    namespace: dict = {}
    exec(MODEL, namespace)
    torch.manual_seed(0)
    model = namespace["build"]().eval()
    save_file(model.state_dict(), root / "dense.safetensors", {METADATA_KEY: spec.to_json()})
    other = replace(spec, classes=("x", "y"))
    save_file(model.state_dict(), root / "other.safetensors", {METADATA_KEY: other.to_json()})
    report = hscc.compress_(model, torch.randn(16, 1, 16, 16), hscc.Config(hscc.flops(3)))
    hscc.save(model, root / "small.safetensors", report=report, metadata={METADATA_KEY: spec.to_json(), "note": "[b]"})
    save_file({"x": torch.zeros(3)}, root / "foreign.safetensors", {"format": "pt"})
    generator = np.random.default_rng(0)
    for name, level in (("<b>bright", 180), ("dark", 60)):
        (root / "data" / name).mkdir(parents=True)
        for i in range(12):
            pixels = generator.normal(level, 30, (16, 16)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / "data" / name / f"{i}.png")
    points = [{"method": "tucker2", "flop_reduction": 3.0, "difference": -0.1}]
    (root / "points.json").write_text(json.dumps(points))
    (root / "wrong.json").write_text("{}")
    return root


@pytest.fixture
def run(work: Path, monkeypatch, capsys):
    """Runs the command line in this process; returns (exit code, standard output, standard error)."""
    monkeypatch.setattr("hscc.evaluation.speed.latency", lambda *args: {"dense": 4e-3, "compressed": 2e-3})

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(work)
        monkeypatch.setattr(sys, "argv", ["hscc", *arguments])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        return (exit.value.code or 0, *capsys.readouterr())

    return call


REPORT = ("report", "--model", "model.py:build", "--dense", "dense.safetensors", "--weights", "small.safetensors")


def test_the_command_writes_the_page(work: Path, run) -> None:
    data = ("--calibration", "data", "--test", "data", "--points", "points.json")
    code, out, errors = run(*REPORT, *data, "--out", "report.html")
    assert code == 0, errors
    assert "Wrote report.html" in out
    found = Page((work / "report.html").read_text())
    assert [name for name in found.sections if name != "disagreements"] == [s for s in SECTIONS if s != "disagreements"]
    assert "class <b>bright" in found.text
    assert "4.00 → 2.00 ms" in found.text
    assert f"hscc {' '.join((*REPORT, *data))}" in found.text
    code, _, errors = run(*REPORT, "--out", "bare.html")
    assert code == 0, errors
    assert Page((work / "bare.html").read_text()).sections == ["verdict", "maps", "ranks", "notes"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "nowhere/report.html"), "error: out: got 'nowhere/report.html', expected a file in an existing"),
        (("--points", "wrong.json"), "error: points: got other JSON in 'wrong.json', expected a list of dicts"),
        (("--points", "model.py"), "error: points: got 'model.py', which is no JSON"),
        (("--weights", "dense.safetensors"), "error: dense.safetensors: got a file without hscc metadata"),
        (("--dense", "other.safetensors"), "error: dense: got 'other.safetensors', expected one for the images and"),
        (("--margin", "0"), "error: margin: got 0.0, expected points between 0 and 100"),
        (("--calibration", "nowhere"), "error: data: got 'nowhere', expected"),
    ],
)
def test_wrong_input_is_one_line(work: Path, run, arguments: tuple[str, ...], message: str) -> None:
    code, _, errors = run(*REPORT, *arguments)
    assert code == 2
    assert message in errors
    assert "Traceback" not in errors
    assert not (work / "report.html.tmp").exists()
