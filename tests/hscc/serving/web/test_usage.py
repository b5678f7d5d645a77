"""Wrong usage of ``hscc serve`` is one line."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
from hscc.app import cli
from hscc.app.commands import serve

WEIGHTS = ("w.safetensors", "--model", "model.py:build")
WRONG = {
    "no key": ((*WEIGHTS, "--host", "0.0.0.0"), "api-key: got none for the host '0.0.0.0'"),
    "no key file": ((*WEIGHTS, "--api-key", "none.txt"), "api-key: got 'none.txt', expected a text file"),
    "a short key": ((*WEIGHTS, "--api-key", "key.txt"), "api-key: got one that is no key"),
    "no model": (("w.safetensors",), "expected --model file.py:function"),
    "a Ray option alone": ((*WEIGHTS, "--replicas", "2"), "replicas: got it without --ray, expected it not"),
    "a GPU without Ray": ((*WEIGHTS, "--gpus-per-replica", "0"), "gpus-per-replica: got it without --ray"),
    "gRPC with Ray": ((*WEIGHTS, "--ray", "--grpc-port", "8001"), "grpc-port: got it with --ray, which does without"),
    "a device with Ray": ((*WEIGHTS, "--ray", "--device", "cpu"), "device: got it with --ray"),
    "LitServe and Ray": ((*WEIGHTS, "--ray", "--litserve"), "litserve: got it with --ray"),
    "no replica": ((*WEIGHTS, "--ray", "--replicas", "0"), "replicas: got 0-0, expected N or MIN-MAX, each 1 or more"),
    "no weights": (("none.safetensors", "--model", "model.py:build"), "expected a file of weights"),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG)
def test_wrong_usage_is_one_line(arguments: tuple, words: str, folder: Path, monkeypatch, capsys) -> None:
    (folder / "key.txt").write_text("tooshort\n")
    assert words in usage(folder, monkeypatch, capsys, *arguments)


def test_a_port_that_is_taken(folder: Path, monkeypatch, capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        line = usage(folder, monkeypatch, capsys, *WEIGHTS, "--port", str(taken.getsockname()[1]))
    assert "which is not free" in line


def test_a_key_in_the_environment_is_not_echoed(folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HSCC_API_KEY", "tooshort")
    assert "tooshort" not in usage(folder, monkeypatch, capsys, *WEIGHTS)


def usage(folder: Path, monkeypatch, capsys, *arguments: str) -> str:
    """The one line that ``hscc serve`` ends with."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["hscc", "serve", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_model_that_does_not_load_ends_the_server(serve, folder: Path) -> None:
    (folder / "broken.safetensors").write_bytes(b"x" * 100)
    server = serve("broken.safetensors")
    assert server.process.wait(60) == 2
    assert server.process.stderr.read().startswith("error: broken.safetensors")


@pytest.mark.parametrize(
    ("option", "package", "extra"),
    [("--litserve", "litserve", "serve"), ("--threads", "uvicorn", "serve"), ("--ray", "ray", "ray")],
)
def test_what_is_not_installed_is_named(option: str, package: str, extra: str, folder: Path, monkeypatch, capsys):
    known = serve.find_spec
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == package else known(name))
    line = usage(folder, monkeypatch, capsys, *WEIGHTS, option, *(["1"] if option == "--threads" else []))
    assert line == f"error: hscc serve needs {package}: pip install 'hscc[{extra}]'"
