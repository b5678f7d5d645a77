"""The arrows of ``docs/architecture.md``: who may import whom, and how light an import is."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import hscc
import pytest

import hscc_kernels

PACKAGES = {p.__name__: Path(p.__file__).parent for p in (hscc, hscc_kernels)}
ALLOWED = {
    "hscc_kernels": {
        "errors": set(),
        "plan": set(),
        "_extension": set(),
        "reference": {"plan"},
        "arguments": {"plan"},
        "backward": {"plan", "reference"},
        "ops": {"_extension", "arguments", "backward", "reference", "triton_kernels"},
        "dispatch": {"_extension", "errors"},
        "functional": {"arguments", "dispatch", "ops", "plan"},
        "projection": {"dispatch", "ops"},
        "testing": {"reference", "plan"},
    },
    "hscc": {
        "_version": set(),
        "progress": set(),
        "config": set(),
        "stats": set(),
        "work": set(),
        "latency": {"_version", "distributed", "progress", "work"},
        "report": set(),
        "images": set(),
        "clusters": set(),
        "ranks": set(),
        "layer": set(),
        "projection": {"layer"},
        "regions": {"stats"},
        "factors": {"stats"},
        "distributed": set(),
        "calibrate": {"distributed", "regions", "stats", "progress"},
        "surgery": {"layer"},
        "chains": {"config", "layer", "ranks", "stats"},
        "baselines": {"calibrate", "chains", "config", "distributed", "ranks", "report", "search", "stats"},
        "search": {"ranks"},
        "sensitivity": {"calibrate", "distributed", "regions"},
        "heads": {"calibrate", "distributed"},
        "squeeze": {"calibrate", "chains", "distributed", "projection", "stats", "work"},
        "structure": {
            *("clusters", "config", "factors", "latency", "layer", "ranks", "regions"),
            *("squeeze", "stats", "work"),
        },
        "fitting": {"config", "factors", "layer", "projection", "stats", "structure"},
        "rectifiers": {"calibrate", "distributed"},
        "reconstruct": {
            *("calibrate", "config", "distributed", "factors", "fitting", "layer", "projection", "rectifiers", "stats"),
            "structure",
        },
        "compress": {
            *("baselines", "calibrate", "chains", "config", "fitting", "heads", "latency", "layer", "progress"),
            *("ranks", "reconstruct", "rectifiers", "regions", "report", "search", "sensitivity", "squeeze", "stats"),
            *("structure", "surgery", "work"),
        },
        "checkpoint": {"chains", "layer", "projection", "report", "surgery"},
        "finetune": {"calibrate", "checkpoint", "layer", "projection"},
        "fuse": {"layer", "projection"},
        "evaluate": {"progress"},
        "figures": {"layer", "report"},
        "loading": {"checkpoint", "images"},
        "demo": {
            *(
                "_version",
                "compress",
                "config",
                "evaluate",
                "figures",
                "fuse",
                "images",
                "latency",
                "loading",
                "report",
            ),
        },
        "cli": {
            *("Budget", "Config", "compress_", "demo", "evaluate", "finetune", "images", "load_", "loading", "save"),
        },
    },
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


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows(package: str) -> None:
    files = {path.stem: path for path in PACKAGES[package].glob("*.py") if path.stem != "__init__"}
    assert set(files) == set(ALLOWED[package]), "a new file needs its arrows here and in docs/architecture.md"
    for name, path in files.items():
        own, _ = imports(path)
        assert own <= ALLOWED[package][name], f"{package}.{name}"


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
