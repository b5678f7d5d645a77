"""Gates of the Triton kernel that need no GPU: interpreted numerics, code for four chips, choice of a tile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

import triton

from hscc_kernels import Geometry
from hscc_kernels.triton_kernels import autotune, configs
from hscc_kernels.triton_kernels.configs import Chip, Config, Problem
from tests.kernels.triton_offline import CHIPS, RECORD, chooser, variants

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SAME = Geometry((3, 3), padding=(1, 1))
LAYER = Problem(torch.bfloat16, 64, SAME, 100352, 1, 1, 43, 43, 256, slice_rows=43, one_cluster=True)
H200 = Chip("H200", 132, hopper=True)


def python(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *args]
    return subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def jobs() -> Iterator[dict[str, Future]]:
    """The interpreted tests and a compilation for each chip: five processes, two at a time."""
    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "triton_interpreted.py"))
    with ThreadPoolExecutor(2) as pool:
        # A process of its own: triton reads TRITON_INTERPRET when a kernel is defined.
        interpreted = pool.submit(python, *tests, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
        chips = {chip: pool.submit(python, "-m", "tests.kernels.triton_offline", chip) for chip in CHIPS}
        yield {"interpreted": interpreted, **chips}


@pytest.mark.slow
def test_interpreted(jobs) -> None:
    done = jobs["interpreted"].result()
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.parametrize("chip", CHIPS)
def test_machine_code(chip: str, jobs) -> None:
    """Tensor cores kept busy, no spills, registers and shared memory for as many programs as are to be resident.

    After a change that is worth its registers: ``python -m tests.kernels.triton_offline --record``.
    """
    done = jobs[chip].result()
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    record = json.loads(RECORD.read_text())
    compiled = {variant.name: variant for variant in variants(chip)}
    assert set(found) == set(record["chips"][chip]) == set(compiled)
    for name, got in found.items():
        resident, warps = compiled[name].config.resident, compiled[name].config.num_warps
        assert got["spills"] == 0, name
        assert not got["serialized"], name
        if chip == "gfx942":
            assert got["shared"] <= CHIPS[chip].shared_bytes, name
        else:
            assert resident * (got["shared"] + 1024) <= CHIPS[chip].shared_bytes, name
            assert got["shared"] <= 48 * 1024 or not compiled[name].config.through_l1, name
            assert resident * warps * 32 * got["registers"] <= 65536, name
        exact = " float32 " in name and chip != "gfx942"  # NVIDIA has no tensor cores for full fp32
        assert (got["tensor_core"] is None) == exact, name
        if record["triton"] == triton.__version__:
            expected = record["chips"][chip][name]
            assert got["registers"] <= expected["registers"], name
            assert got["shared"] <= expected["shared"], name
            assert got["tensor_core"] == expected["tensor_core"], name


@pytest.mark.parametrize("chip", CHIPS)
def test_every_tile_is_recorded_with_every_kind_of_layer(chip: str) -> None:
    """Whatever the layer, what ``configs.table`` gives for it has been compiled; what counts as equal, see there."""

    def kind(problem: Problem, tile: Config) -> tuple:
        return problem.dtype == torch.float32, problem.whole_row, problem.in_order(tile), problem.wide

    record = json.loads(RECORD.read_text())["chips"][chip]
    recorded = {(v.config, *kind(v.problem, v.config)) for v in variants(chip) if v.name in record}
    values = {
        "dtype": (torch.bfloat16, torch.float16, torch.float32),
        "in_channels": (1, 15, 16, 512),
        "geometry": (LAYER.geometry, Geometry((3, 3), dilation=(2, 2))),
        "one_cluster": (False, True),
        "slice_rows": (16, 1000),
        "wide": (False, True),
    }
    for each in product(*values.values()):
        layer = LAYER._replace(**dict(zip(values, each, strict=True)))
        assert {(tile, *kind(layer, tile)) for tile in configs.table(layer, chooser(chip))} <= recorded, layer


def test_every_table_has_every_tile_once() -> None:
    tables = (
        configs.HALF,
        configs.HOPPER + configs.HOPPER_L1,
        configs.SCATTERED,
        configs.WHOLE_ROW,
        configs.SINGLE,
        configs.UNPIPELINED,
    )
    for table in tables:
        assert len(set(table)) == len(table)
    for table in (configs.HALF, configs.HOPPER):
        assert max(config.BR for config in table) == table[-1].BR


SEVERAL = {"one_cluster": False}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, Config(256, 64, 64, 64, 8, 3)),
        ({"pairs": 64 * 196}, Config(128, 64, 64, 64, 8, 3, 2)),
        ({"pairs": 196}, Config(32, 64, 128, 64, 4, 4, 2)),
        ({"slice_rows": 9}, Config(256, 16, 64, 64, 8, 2, 2)),
        ({"slice_rows": 500}, Config(32, 512, 32, 32, 8, 2)),
        ({"slice_rows": 513}, Config(32, 512, 32, 16, 8, 2)),
        ({"regions": 4, "clusters": 4, "rows": 120, "slice_rows": 90}, Config(256, 128, 64, 32, 8, 3)),
        ({**SEVERAL, "regions": 2, "clusters": 8, "rows": 120, "slice_rows": 15}, Config(64, 64, 64, 64, 8, 3)),
        ({**SEVERAL, "clusters": 3, "rows": 300, "slice_rows": 110}, Config(64, 128, 64, 64, 8, 3)),
        ({**SEVERAL, "slice_rows": None, "rows": 120, "pool": 50, "regions": 4}, Config(64, 64, 64, 64, 8, 3)),
        ({**SEVERAL, "clusters": 3}, Config(64, 64, 64, 64, 8, 3)),
        ({"wide": True}, Config(64, 64, 64, 64, 8, 3)),
        ({"in_channels": 3}, Config(64, 64, 32, 64, 8, 2)),
        ({"dtype": torch.float32}, Config(64, 64, 16, 32, 8, 2)),
        ({"dtype": torch.float32, "in_channels": 3}, Config(64, 64, 16, 32, 8, 1)),
    ],
    ids=str,
)
def test_default_configuration(change: dict, expected: Config) -> None:
    options = configs.candidates(LAYER._replace(**change), H200)
    assert options[0] == expected
    assert len(set(options)) == len(options) <= 6
    assert not any(option.through_l1 for option in configs.candidates(LAYER._replace(geometry=Geometry((1, 1))), H200))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty disk cache and an empty memory."""
    monkeypatch.setenv("HSCC_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(autotune, "_chosen", {})
    return autotune.path()


def test_a_wrong_candidate_is_never_chosen(caplog) -> None:
    """The quickest writes a wrong value, the next leaves one unwritten: the slow right one wins."""
    default, wrong, partial, right = configs.HALF[:4]
    out = torch.empty(4, 4)

    def launch(config: Config) -> None:
        out[: 3 if config == partial else 4] = 1.0
        if config == wrong:
            out[0, 0] = 1.1

    times = iter((3.0, 2.0))
    assert autotune.fastest((default, wrong, partial, right), launch, out, lambda call: next(times)) == right
    assert [str(option) in caplog.text for option in (wrong, partial, right)] == [True, True, False]


def test_choice_is_read_from_disk_once(cache: Path) -> None:
    out, key = torch.empty(1), autotune.shape_class(LAYER, H200)
    other = configs.candidates(LAYER, H200)[1]
    autotune._write(key, other)
    assert autotune.choose(LAYER, H200, None, out) == other
    cache.unlink()
    assert autotune.choose(LAYER, H200, None, out) == other, "a warm call reads no file"


def test_a_broken_or_stale_cache_gives_the_default(cache: Path, caplog) -> None:
    default = configs.candidates(LAYER, H200)[0]
    cache.write_text("{")
    assert autotune.choose(LAYER, H200, None, torch.empty(1)) == default
    assert "not readable" in caplog.text
    autotune._chosen.clear()
    cache.write_text(json.dumps({autotune.shape_class(LAYER, H200): [*default[:6]]}))
    assert autotune.choose(LAYER, H200, None, torch.empty(1)) == default


def test_shape_classes() -> None:
    key = autotune.shape_class(LAYER, H200)
    assert autotune.shape_class(LAYER._replace(pairs=100353), H200) == key
    assert autotune.shape_class(LAYER._replace(pairs=2**17 + 1), H200) != key
    assert autotune.shape_class(LAYER, H200._replace(name="A100")) != key
    assert autotune.shape_class(LAYER._replace(rows=44), H200) != key
