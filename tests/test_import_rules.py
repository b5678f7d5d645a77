"""The arrows of ``docs/architecture.md``: who may import whom, how light an import is, how much a function takes."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import hscc
import pytest

import hscc_kernels
from docs import rooms

PACKAGES = {p.__name__: Path(p.__file__).parent for p in (hscc, hscc_kernels)}
BELOW = {"config", "report", "progress", "nn", "hscc_kernels"}
ROOMS = {
    "quantize": {"fit", "observe", "nn", "tables"},
    "app": {"serving", "exports", "guard", "study", "compress", "fit", "search", "io", "data", "evaluation", *BELOW},
    "compress": {"tolerance", "quantize", "fitted", "calibrated", *BELOW},
    "serving": {"guard", "io", "data", "nn", "hscc_kernels"},
    "exports": {"observe", "io", "data", "nn", "hscc_kernels"},
    "guard": {"observe", "nn"},
    "study": {"fitted", "calibrated", "evaluation", "observe", "io", *BELOW},
    "tolerance": {"fitted", "calibrated", "evaluation", "observe", *BELOW},
    "fitted": {"calibrated", "whole", "baselines", "fit", "observe", *BELOW},
    "calibrated": {"whole", "baselines", "fit", "search", "observe", *BELOW},
    "whole": {"exports", "evaluation", "observe", "io", *BELOW},
    "fit": {"search", "observe", "maths", "io", *BELOW},
    "baselines": {"search", "observe", "maths", *BELOW},
    "search": {"observe", "maths", *BELOW},
    "observe": {"maths", "nn", "progress"},
    "evaluation": {"observe", "progress"},
    "summary": {"observe", "nn", "report", "hscc_kernels"},
    "io": {"guard", "data", "nn", "report", "hscc_kernels"},
    "nn": {"hscc_kernels"},
    "report": {"tables"},
    **{room: set() for room in ("data", "maths", "config", "tables", "progress", "hscc_kernels")},
}
KERNELS = {
    "errors": set(),
    "layout": set(),
    "region_map": {"layout"},
    "plan": {"layout", "region_map"},
    "_extension": set(),
    "reference": {"layout", "plan"},
    "reference_int8": {"layout", "plan", "reference"},
    "int8_plan": {"arguments", "plan"},
    "functional_int8": {"arguments", "dispatch", "int8_plan", "ops"},
    "arguments": {"layout"},
    "backward": {"layout", "reference"},
    "flops": {"layout", "plan"},
    "ops": {
        "_extension",
        "arguments",
        "backward",
        "flops",
        "layout",
        "reference",
        "reference_int8",
        "region_map",
        "triton_kernels",
    },
    "dispatch": {"_extension", "errors"},
    "functional": {"arguments", "dispatch", "ops", "plan"},
    "projection": {"dispatch", "ops"},
    "testing": {"layout", "reference", "reference_int8", "int8_plan", "plan"},
}


def imports(path: Path) -> tuple[set[str], set[str]]:
    """(modules of the same package, top-level names of other packages) that a file imports anywhere."""
    own, other = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            own |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            other.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            other |= {alias.name.split(".")[0] for alias in node.names}
    return own, other


def test_rooms_import_only_what_lies_below() -> None:
    found = rooms.arrows()
    assert set(found) == set(ROOMS), "a new room needs its arrows here and a line in docs/architecture.md"
    for room, others in found.items():
        assert others <= ROOMS[room], room


def test_files_import_in_no_circle() -> None:
    graph = {name: set(rooms.imports(name, path)) for name, path in rooms.modules().items()}
    assert len([*TopologicalSorter(graph).static_order()]) == len(graph) + 1  # and the kernels


def test_the_picture_is_of_today() -> None:
    assert (rooms.ROOT / "docs" / "rooms.svg").read_text() == rooms.svg(), "run python docs/rooms.py"


def test_kernels_files() -> None:
    files = {path.stem: path for path in PACKAGES["hscc_kernels"].glob("*.py") if path.stem != "__init__"}
    assert set(files) == set(KERNELS), "a new file needs its arrows here"
    for name, path in files.items():
        own, _ = imports(path)
        assert own <= KERNELS[name], name


def test_no_function_has_more_than_six_parameters() -> None:
    """But commands: their parameters are the options of the command line."""
    for name, path in rooms.modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and "app.command()" not in map(ast.unparse, node.decorator_list):
                given = node.args
                count = sum(map(len, (given.posonlyargs, given.args, given.kwonlyargs)))
                assert count + bool(given.vararg) + bool(given.kwarg) <= 6, f"{name}.{node.name}"


def test_kernels_never_import_the_thin_layer() -> None:
    for path in PACKAGES["hscc_kernels"].rglob("*.py"):
        assert "hscc" not in imports(path)[1], path


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout


def test_import_is_light_and_silent() -> None:
    """Nothing heavy beyond torch, nothing printed, no CUDA."""
    code = (
        "import sys, torch; import hscc\n"
        "heavy = {'sklearn', 'scipy', 'matplotlib', 'triton', 'typer', 'rich', 'PIL'} & set(sys.modules)\n"
        "print(sorted(heavy), torch.cuda.is_initialized())"
    )
    assert run(code).strip() == "[] False"


def test_public_names_are_there() -> None:
    assert (
        run("from hscc import *; import hscc; print(len(set(hscc.__all__) & set(globals())))")
        == f"{len(hscc.__all__)}\n"
    )
    with pytest.raises(AttributeError, match="module 'hscc' has no attribute 'compres'"):
        hscc.compres  # noqa: B018


def test_a_loaded_model_needs_little(tmp_path: Path) -> None:
    """Of all rooms nn, and of io the checkpoint; no scikit-learn, no scipy."""
    path = tmp_path / "small.safetensors"
    model = "torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3))"
    made = f"x = torch.randn(4, 3, 9, 9); model = {model}; hscc.compress_(model, [x], hscc.Config(hscc.flops(1.5)))"
    run(f"import torch, hscc; {made}; hscc.save(model, {str(path)!r})")
    code = (
        f"import sys, torch; import hscc; model = {model}; hscc.load_(model, {str(path)!r})\n"
        "assert model(torch.randn(2, 3, 9, 9)).shape == (2, 8, 5, 5)\n"
        "heavy = {'sklearn', 'scipy', 'matplotlib', 'triton', 'typer', 'PIL'} & set(sys.modules)\n"
        "print(sorted(heavy), *sorted(m for m in sys.modules if m.startswith('hscc.')))"
    )
    files = ["chain", "conv2d", "effective", "forms", "groups", "int8", "padding", "projection", "surgery"]
    layers = " ".join(f"hscc.nn.{file}" for file in files)
    assert (
        run(code).strip() == f"[] hscc._version hscc.io hscc.io.checkpoint hscc.io.layers hscc.nn {layers} hscc.report"
    )


def test_works_without_the_extension_and_without_triton() -> None:
    code = (
        "import sys, importlib.machinery as m\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'hscc_kernels._C' or name.split('.')[0] == 'triton': raise ImportError('blocked')\n"
        "sys.meta_path.insert(0, Block())\n"
        "import importlib.util; real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'triton' else real(name, *a)\n"
        "import torch, hscc, hscc_kernels\n"
        "reasons = hscc_kernels.explain(torch.empty(0))\n"
        "assert 'not built' in reasons['cpu'] and 'not installed' in reasons['triton'], reasons\n"
        "x = torch.randn(2, 3, 9, 9); conv = torch.nn.Conv2d(3, 4, 3)\n"
        "torch.testing.assert_close(hscc.HSCConv2d.dense(conv, (7, 7))(x), conv(x), rtol=1e-4, atol=1e-5)\n"
        "print('ran')"
    )
    assert run(code).strip() == "ran"
