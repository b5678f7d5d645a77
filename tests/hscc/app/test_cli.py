"""The command line as a user meets it, on a small network and class folders made here."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hscc.data.folders import ClassFolders, Pictures
from hscc.data.spec import METADATA_KEY, ImageSpec
from hscc.io.checkpoint import load_guard
from hscc.io.loading import build_model, load_module
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.hscc.app.conftest import MODEL, NETWORK, SPEC


def test_compress_then_evaluate(work: Path, hscc) -> None:
    code, out, errors = hscc("compress", *NETWORK, "--flops", "3", "--out", "small.safetensors", "--json", "c.json")
    assert code == 0, errors
    assert "Wrote small.safetensors" in out
    assert json.loads((work / "c.json").read_text())["flop_reduction"] >= 3
    accuracies = []
    for weights in ("w.safetensors", "small.safetensors"):
        arguments = [weights if a == "w.safetensors" else a for a in NETWORK]
        code, out, errors = hscc("evaluate", *arguments, "--json", "e.json")
        assert code == 0, errors
        result = json.loads((work / "e.json").read_text())
        assert result["images"] == 24
        accuracies.append(result["accuracy"])
    assert f"accuracy {100 * accuracies[-1]:.2f} %" in out


def test_a_report_comes_before_the_refusal_to_write_a_dense_network(work: Path, hscc) -> None:
    code, out, errors = hscc("compress", *NETWORK, "--portable", "--energy", "0.9999999", "--out", "none.safetensors")
    assert code == 2
    assert "nothing is compressed" in out
    assert "expected a compressed model" in errors
    assert not (work / "none.safetensors").exists()


def test_in_8_bits_and_evaluated(work: Path, hscc) -> None:
    pytest.importorskip("onnx", reason="needs hscc[onnx]")
    model, data = ("--model", "model.py:build"), ("--data", "data")
    code, out, errors = hscc("compress", *NETWORK, "--portable", "--flops", "1.5", "--out", "plain.safetensors")
    assert code == 0, errors
    given = (*model, "--weights", "plain.safetensors", "--out", "plain.onnx", "--int8")
    code, out, errors = hscc("export", *given, *data, "--limit", "8", "--json", "x.json")
    assert code == 0, errors
    assert "onnx in 8 bits" in out
    assert json.loads((work / "x.json").read_text())["bits"] == 8
    code, out, errors = hscc("evaluate", *model, "--weights", "plain.onnx", *data, "--against", "plain.safetensors")
    assert code == 0, errors
    assert "24 images" in out
    for wrong, message in (
        ((), "data: got none with --int8, expected both or neither"),
        ((*data, "--format", "pt2"), "format: got 'pt2' with --int8, expected 'onnx'"),
        ((*data, "--bits", "5"), "bits: got 5, expected 8, or 7"),
    ):
        code, _, errors = hscc("export", *given, *wrong)
        assert (code, message in errors) == (2, True), errors
    code, _, errors = hscc(
        "compress", *model, "--weights", "plain.onnx", *data, "--flops", "2", "--out", "y.safetensors"
    )
    assert (code, "plain.onnx" in errors) == (2, True), errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--flops", "0.5"), "error: budget: got flops=0.5, expected a reduction of at least 1"),
        (
            (),
            "error: budget: got flops=None, params=None, bytes=None, latency=None, max_drop=None and energy=None",
        ),
        (("--flops", "3", "--data", "nowhere"), "error: data: got 'nowhere', expected a folder of images"),
        (("--flops", "3", "--data", "empty"), "error: data: got no images in 'empty', expected files ending in"),
        (("--flops", "3", "--data", "broken"), "error: unreadable image"),
        (("--flops", "3", "--model", "none.py"), "error: model: got 'none.py', expected a Python file"),
        (("--flops", "3", "--model", "model.py:x"), "error: model: got 'model.py:x', but model.py has no function 'x'"),
        (("--flops", "3", "--model", "model.py:number"), "error: model: got int from 'model.py:number', expected an"),
        (("--flops", "3", "--weights", "nowhere"), "error: checkpoint: got 'nowhere', expected a file"),
        (("--flops", "3", "--weights", "model.py"), "got an unreadable or truncated file"),
        (("--flops", "3", "--out", "nowhere/m.safetensors"), "expected a file in an existing folder"),
        (("--flops", "3", "--regions", "0"), "error: regions: got 0, expected an integer of at least 1"),
        (("--flops", "3", "--speed", "11"), "No such option"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(work: Path, hscc, arguments: tuple[str, ...], message: str) -> None:
    (work / "empty").mkdir(exist_ok=True)
    (work / "broken").mkdir(exist_ok=True)
    (work / "broken" / "x.png").write_bytes(b"no picture")
    code, _, errors = hscc("compress", *NETWORK, "--out", "wrong.safetensors", *arguments)
    assert code == 2
    assert message in errors
    assert "Traceback" not in errors
    assert not list(work.glob("wrong.safetensors*"))


def test_budgets_of_bytes_and_latency(work: Path, hscc, machine) -> None:
    budgets = ("--bytes", "2", "--latency", "1.5", "--latency-batch", "4", "--faster-only")
    code, out, errors = hscc("compress", *NETWORK, *budgets, "--out", "fast.safetensors", "--json", "f.json")
    assert code == 0, errors
    result = json.loads((work / "f.json").read_text())
    assert result["byte_reduction"] >= 2
    assert result["speedup"] >= 1.5
    assert "faster (predicted; median error 5%)" in out


def test_finetune_goes_on_after_an_interrupt(work: Path, hscc, monkeypatch) -> None:
    hscc("compress", *NETWORK, "--flops", "6", "--out", "small.safetensors")
    arguments = (*NETWORK, "--student", "small.safetensors", "--epochs", "3", "--batch", "8", "--rate", "3e-6")
    code, out, errors = hscc("finetune", *arguments, "--out", "tuned.safetensors")
    assert code == 0, errors
    assert "Wrote tuned.safetensors" in out

    run_of_two = sys.modules["hscc.fit.finetune"]._Run
    save = run_of_two.save

    def interrupt(run, *rest) -> None:
        save(run, *rest)
        if len(run.training) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(run_of_two, "save", interrupt)
    code, _, _ = hscc("finetune", *arguments, "--out", "other.safetensors")
    assert code == 130
    assert (work / "other.safetensors.state").exists()
    assert not (work / "other.safetensors").exists()
    monkeypatch.undo()
    code, _, errors = hscc("finetune", *arguments, "--out", "other.safetensors")
    assert code == 0, errors
    assert not list(work.glob("*.state"))
    tuned, other = (load_file(work / f"{name}.safetensors") for name in ("tuned", "other"))
    assert all(torch.equal(tuned[key], other[key]) for key in tuned)
    assert any(not torch.equal(tuned[key], value) for key, value in load_file(work / "small.safetensors").items())


def test_finetune_needs_a_compressed_student(work: Path, hscc) -> None:
    code, _, errors = hscc("finetune", *NETWORK, "--student", "w.safetensors", "--out", "tuned.safetensors")
    assert code == 2
    assert "error: w.safetensors: got a file without hscc metadata, expected one written by hscc.save" in errors


def test_labels_missing(work: Path, hscc) -> None:
    (work / "half" / "bright").mkdir(parents=True, exist_ok=True)
    code, _, errors = hscc("evaluate", *NETWORK, "--data", "half")
    assert code == 2
    assert "error: labels missing in 'half': got ['bright'], expected ['bright', 'dark']" in errors


def one_line(code: int, errors: str) -> str:
    """What stands after ``error:``, when it is all there is."""
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert (code, lines) == (2, [errors.splitlines()[-1]]), errors
    assert "Traceback" not in errors
    return lines[0].removeprefix("error: ")


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ("nn.Linear(16, 3)", "evaluate: got 3 outputs, expected 2 (classes ('bright', 'dark'))"),
        ("nn.Unflatten(1, (16, 1))", "evaluate: got outputs of shape (24, 16, 1) for 24 images, expected 2 (classes"),
        ("Named()", "evaluate: got dict as outputs, expected 2 (classes"),
    ],
)
def test_outputs_must_fit_the_classes(work: Path, hscc, last: str, message: str) -> None:
    named = "class Named(nn.Module):\n    def forward(self, x):\n        return {'logits': x}\n"
    (work / "misfit.py").write_text(MODEL.replace("def build", f"{named}def build").replace("nn.Linear(16, 2)", last))
    model = build_model(str(work / "misfit.py"))
    save_file(model.state_dict(), work / "misfit.safetensors", {METADATA_KEY: SPEC.to_json()})
    arguments = ("--model", "misfit.py:build", "--weights", "misfit.safetensors")
    assert one_line(*hscc("evaluate", *NETWORK, *arguments)[::2]).startswith(message)


def test_one_logit_tells_two_classes_apart(work: Path, hscc) -> None:
    model = "from torch import nn\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(256, 1))\n"
    (work / "logit.py").write_text(model)
    weights = {"1.weight": torch.full((1, 256), -1.0), "1.bias": torch.zeros(1)}  # dark pictures lie above 0
    save_file(weights, work / "logit.safetensors", {METADATA_KEY: SPEC.to_json()})
    code, out, errors = hscc("evaluate", *NETWORK, "--model", "logit.py", "--weights", "logit.safetensors")
    assert code == 0, errors
    assert "accuracy 100.00 %" in out


def neighbours(folder: Path, width: int) -> str:
    """A model file that imports files and packages beside it, at the top and while building; its path."""
    (folder / "parts").mkdir(parents=True)
    (folder / "helper.py").write_text(f"WIDTH = {width}\n")
    (folder / "lazy.py").write_text(f"import helper\nWIDTH = {width}\n")
    (folder / "parts" / "net.py").write_text(f"WIDTH = {width}\n")
    text = "from torch import nn\nfrom helper import WIDTH\nfrom parts.net import WIDTH as LAST\n"
    build = (
        "def build():\n    import lazy\n    return nn.Sequential(nn.Linear(WIDTH, lazy.WIDTH), nn.Linear(LAST, LAST))\n"
    )
    (folder / "sib.py").write_text(text + build)
    return str(folder / "sib.py")


@pytest.fixture
def modules():
    """Leaves ``sys.modules`` as it was."""
    before = dict(sys.modules)
    yield
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]


@pytest.mark.usefixtures("modules")
def test_models_import_what_lies_beside_them(tmp_path: Path) -> None:
    paths = list(sys.path)
    places = {3: tmp_path / "a" / "m", 4: tmp_path / "b" / "m", 5: tmp_path / "a" / "m" / "inner"}
    sources = {width: neighbours(place, width) for width, place in places.items()}
    for width in (3, 4, 4, 3, 5, 3):  # same names all the time
        assert build_model(sources[width])[0].weight.shape == (width, width)
        assert build_model(sources[width])[1].weight.shape == (width, width)
    assert sys.path == paths
    assert sys.modules["helper"].WIDTH == 3  # of the first
    (tmp_path / "alone.py").write_text("import helper\n")
    with pytest.raises(
        ImportError, match=r"alone\.py', whose imports fail \(No module named 'helper'\), expected modules"
    ):
        load_module(tmp_path / "alone.py")
    modules = [load_module(source) for source in sources.values()]
    assert len({module.__name__ for module in modules}) == 3
    assert all(sys.modules[module.__name__] is module for module in modules)
    assert sys.path == paths


@pytest.mark.usefixtures("modules")
def test_neighbours_are_not_the_callers_modules(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "helper.py").write_text("WIDTH = 9")
    monkeypatch.syspath_prepend(tmp_path / "own")
    import helper

    source = neighbours(tmp_path / "m", 3)
    (tmp_path / "m" / "torch").mkdir()  # as in a folder of checkouts; the one installed stays
    assert build_model(source)[0].weight.shape == (3, 3)
    assert sys.modules["helper"] is helper
    assert sys.modules["torch"] is torch


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nowhere_at_all", "model: got 'wrong.py', whose imports fail (No module named 'nowhere_at_all')"),
        (
            "from neighbour import x",
            "model: got 'wrong.py', whose imports fail (cannot import name 'x' from 'neighbour'",
        ),
        ("from .neighbour import x", "model: got 'wrong.py', whose imports fail (attempted relative import"),
        ("def build():\n    import nowhere_at_all", "model: got 'wrong.py', whose imports fail (No module named"),
        (
            "def build(:",
            "model: got 'wrong.py' with a syntax error (invalid syntax (wrong.py, line 1)), expected Python",
        ),
        ("import unparsable", "model: got 'wrong.py' with a syntax error (invalid syntax (unparsable.py, line 2))"),
        ("  x = 1\n y = 2", "model: got 'wrong.py' with a syntax error (unexpected indent (wrong.py, line 1))"),
        ("def build(n, m):\n    pass", "model: got 'wrong.py:build' with missing a required argument: 'n', expected a"),
        ("build = 3", "model: got 'wrong.py:build', but wrong.py has no function 'build'"),
    ],
)
def test_a_model_file_that_does_not_load_is_one_line(work: Path, hscc, text: str, message: str) -> None:
    (work / "neighbour.py").write_text("y = 1\n")
    (work / "unparsable.py").write_text("y = 1\nclass 3:\n")
    (work / "wrong.py").write_text(text + "\n")
    for command in (("evaluate",), ("compress", "--flops", "3", "--out", "x.safetensors")):
        arguments = (*NETWORK, "--model", "wrong.py:build")
        assert one_line(*hscc(command[0], *arguments, *command[1:])[::2]).startswith(message)
    assert str(work) not in sys.path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "model.py/x.py"), "model: got 'model.py/x.py', expected a Python file"),
        (("--model", "data"), "model: got 'data', expected a Python file"),
        (("--model", "w.safetensors"), "model: got 'w.safetensors', expected a Python file, ending in .py"),
        (("--model", f"{'x' * 300}.py"), "File name too long"),
        (("--weights", "data"), "checkpoint: got 'data', expected a file"),
        (("--weights", "small"), "small: got weights that do not fit 'model.py:build': Error(s) in loading state_dict"),
        (("--weights", "foreign"), "foreign: got no 'hscc.images' in the header, expected"),
        (
            ("--weights", "damaged"),
            "damaged: got a damaged 'hscc.images' (Expecting value: line 1 column 1 (char 0)), ",
        ),
        (("--weights", "other"), "other: got a damaged 'hscc.images' ("),
        (("--json", "data"), "Is a directory: 'data'"),
        (("--json", "model.py/x.json"), "Not a directory: 'model.py/x.json'"),
        (("--data", "model.py"), "data: got 'model.py', expected a folder of class folders"),
    ],
)
def test_wrong_paths_are_one_line(work: Path, hscc, monkeypatch, arguments: tuple[str, ...], message: str) -> None:
    monkeypatch.setattr("hscc.evaluation.speed.latency", lambda models, example: dict.fromkeys(models, 1.0))
    tensors = {"x": torch.zeros(1)}
    save_file(tensors, work / "small", {METADATA_KEY: SPEC.to_json()})
    save_file(tensors, work / "foreign", {"format": "pt"})
    save_file(tensors, work / "damaged", {METADATA_KEY: "bright, dark"})
    save_file(tensors, work / "other", {METADATA_KEY: '{"size": 3}'})
    assert message in one_line(*hscc("evaluate", *NETWORK, *arguments)[::2])


@pytest.mark.parametrize("kind", [ValueError, TypeError, ImportError, FloatingPointError, PermissionError, OSError])
def test_errors_of_every_kind_are_one_line(hscc, monkeypatch, kind: type[Exception]) -> None:
    def fail(*args):
        raise kind("got this,\n\texpected that")

    monkeypatch.setattr("hscc.io.loading.load_model", fail)
    assert one_line(*hscc("evaluate", *NETWORK)[::2]) == "got this, expected that"


@pytest.mark.parametrize("command", ["demo", "compress", "finetune", "evaluate"])
def test_help_has_an_example(hscc, command: str) -> None:
    code, out, _ = hscc(command, "--help")
    assert code == 0
    assert f"Example: hscc {command}" in out


def test_demo_outside_a_checkout_says_so(hscc) -> None:
    code, _, errors = hscc("demo", "--example", "nowhere")
    assert code == 2
    assert "error: example: got 'nowhere', expected the folder examples/brain_mri of a checkout" in errors


def test_interrupt_writes_nothing(work: Path) -> None:
    build = "def build():\n    open('started', 'w').close()\n    time.sleep(300)"
    (work / "slow.py").write_text("import time\n" + MODEL.replace("def build():", build))
    arguments = ["slow.py:build" if a == "model.py:build" else a for a in NETWORK]
    command = [sys.executable, "-m", "hscc", "compress", *arguments, "--flops", "3", "--out", "slow.safetensors"]
    process = subprocess.Popen(
        command,
        cwd=work,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    while not (work / "started").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert not list(work.glob("slow.safetensors*"))


def test_images_become_inputs(work: Path) -> None:
    folders, pictures = ClassFolders(work / "data", SPEC), Pictures(work / "data", SPEC)
    assert len(folders) == len(pictures) == 24
    image, label = folders[0]
    pixels = np.asarray(Image.open(folders.pictures.items[0].path))
    torch.testing.assert_close(image[0], (torch.tensor(pixels) / 255 - 0.5) / 0.25)
    assert label == 0
    grey = np.random.default_rng(0).integers(0, 255, (2, 16, 16), dtype=np.uint8)
    colour = ImageSpec((16, 16), 3, (0, 0, 0), (1, 1, 1), ("a",))
    torch.testing.assert_close(colour.preprocess(grey), torch.tensor(grey / 255).float()[:, None].expand(-1, 3, -1, -1))
    assert ImageSpec.from_json(colour.to_json()) == colour
    with pytest.raises(ValueError, match=r"pixels: got torch.uint8 \(2, 15, 16\), expected uint8 or float32"):
        colour.preprocess(grey[:, 1:])


def test_broken_files_are_left_out_where_asked(work: Path, hscc) -> None:
    shutil.copytree(work / "data", work / "holed", dirs_exist_ok=True)
    (work / "holed" / "dark" / "x.png").write_bytes(b"no picture")
    network = ["holed" if a == "data" else a for a in NETWORK]
    compress = ("compress", *network, "--effort", "quick", "--flops", "2", "--out", "holed.safetensors")
    code, _, errors = hscc(*compress)
    assert code == 2
    assert "x.png" in errors
    told = "left out 1 that cannot be read: holed/dark/x.png"
    code, out, errors = hscc(*compress, "--skip-broken")
    assert (code, told in out) == (0, True), errors
    student = ("--student", "holed.safetensors", "--out", "tuned.safetensors", "--epochs", "1", "--skip-broken")
    code, out, errors = hscc("finetune", *network, *student, "--validation", "holed")
    assert (code, out.count(told)) == (0, 2), errors
    assert all(len(load_guard(work / f"{name}.safetensors").held_out) == 24 for name in ("holed", "tuned"))
    code, out, errors = hscc(*compress, "--skip-broken", "--no-guard")
    assert (code, load_guard(work / "holed.safetensors")) == (0, None), errors
    sweep = ("sweep", *network, "--method", "svd", "--flops", "2", "--out", "swept-holed", "--validation", "holed")
    code, out, errors = hscc(*sweep, "--skip-broken")
    assert (code, out.count(told)) == (0, 2), errors
