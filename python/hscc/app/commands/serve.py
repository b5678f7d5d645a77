"""``hscc serve``."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from ..options import Threads, app, set_threads
from ..served import Policy, Wanted

LOCAL = ("127.0.0.1", "::1", "localhost")
MIB = 2**20


@app.command()
def serve(
    models: Annotated[list[str], typer.Argument(help="[NAME=]FILE[,file.py:function]: weights, or a .pt2 package.")],
    model: Annotated[str | None, typer.Option(help="Builds the networks of weights that name no function.")] = None,
    host: Annotated[str, typer.Option(help="Address; any but this machine's own needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of HTTP.")] = 8000,
    grpc_port: Annotated[int | None, typer.Option(min=1, max=65535, help="Also serve gRPC there.")] = None,
    api_key: Annotated[Path | None, typer.Option(help="File with the key; else $HSCC_API_KEY, if set.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images in one forward pass, at most.")] = 16,
    delay_ms: Annotated[float, typer.Option(min=0, help="How long a request waits for others.")] = 2.0,
    queue: Annotated[int, typer.Option(min=1, help="Images that wait, at most; more get 429.")] = 256,
    max_body: Annotated[int, typer.Option(min=1, help="MiB of a request, at most.")] = 32,
    any_size: Annotated[bool, typer.Option("--any-size", help="Tensors of other sizes than trained on, too.")] = False,
    devices: Annotated[
        list[str] | None, typer.Option("--device", help="Repeat for several; default: all GPUs.")
    ] = None,
    guard: Annotated[
        str, typer.Option(help="Of images unlike the calibrated: flag, reject, dense (answers instead) or off.")
    ] = "flag",
    dense: Annotated[Path | None, typer.Option(help="For --guard dense: the dense weights.")] = None,
    threads: Threads = None,
    litserve: Annotated[bool, typer.Option("--litserve", help="Serve by LitServe's processes, HTTP alone.")] = False,
    triton_repository: Annotated[
        Path | None, typer.Option(help="Write a model repository for NVIDIA Triton there instead.")
    ] = None,
) -> None:
    """Answers requests of the Open Inference Protocol by HTTP, and by gRPC: tensors, PNG, JPEG and DICOM files.

    Example: hscc serve brain=small.safetensors --model examples/brain_mri/model.py:build
    """
    if triton_repository is not None:
        from ...serving.web import triton_repository as repository

        for text in models:
            one = Wanted.parse(text, model)
            typer.echo(f"Wrote {repository.write(triton_repository, one.name, one.file, one.source, batch)}.")
        return
    key = _key(api_key)
    if host not in LOCAL and key is None:
        raise ValueError(f"api-key: got none for the host {host!r}, expected --api-key FILE or $HSCC_API_KEY")
    if litserve and grpc_port is not None:
        raise ValueError("grpc-port: got one with --litserve, which has HTTP alone, expected none")
    wanted, policy = [Wanted.parse(text, model) for text in models], Policy(guard, dense)
    policy.check(wanted, litserve)
    _need(*(["litserve"] if litserve else []), *(["grpc"] if grpc_port is not None else []))
    from ...serving.web import supervisor

    if litserve or supervisor.SOCKET in os.environ:
        set_threads(threads)
        limits = {"batch": batch, "delay_ms": delay_ms, "queue": queue, "images": min(64, queue)}
        options = {"limits": limits, "devices": devices, "any_size": any_size, "policy": policy}
        sys.exit(_worker(wanted, options, (key, max_body * MIB), (host, port, grpc_port), litserve))
    from ...serving.web.sockets import listen

    listening = listen(host, port)
    command = [sys.executable, "-m", "hscc", *sys.argv[1:]]
    typer.echo(f"Serving on {host}:{port}; stop with Ctrl-C.")
    sys.exit(supervisor.supervise(command, listening, os.environ))


def _worker(wanted: list, options: dict, limited: tuple, address: tuple[str, int, int | None], litserve: bool) -> int:
    import socket

    from ...serving.engine import Engine, Limits
    from ...serving.web import supervisor
    from ...serving.web.limits import WebLimits
    from ...serving.web.service import Service

    (key, body), (host, port, grpc_port), any_size = limited, address, options["any_size"]
    limits, web = Limits(**options["limits"]), WebLimits(body=body, json=min(body, WebLimits.json))
    if litserve:
        from ...serving.web import lit

        sources = [lit.Source(str(one.file), one.source, one.name, any_size) for one in wanted]
        return lit.run(sources, limits, web, key, (host, port))
    from ...serving.web import worker

    engines = [
        Engine(one.load(any_size), limits, guard=options["policy"].of(one, any_size), devices=options["devices"])
        for one in wanted
    ]
    service = Service(engines, web, key)
    listening = socket.socket(fileno=int(os.environ[supervisor.SOCKET]))
    rpc = None if grpc_port is None else f"{f'[{host}]' if ':' in host else host}:{grpc_port}"
    return worker.run(service, listening, rpc, int(os.environ[supervisor.PARENT]))


def _key(file: Path | None) -> str | None:
    from ...serving.web import keys

    if file is None:
        key = os.environ.get("HSCC_API_KEY")
        return keys.check(key) if key else None
    try:
        return keys.check(file.read_text().strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"api-key: got {str(file)!r}, expected a text file with the key") from error


def _need(*more: str) -> None:
    """Without loading any of it."""
    packages = ("starlette", "uvicorn", "httptools", "prometheus_client", *more)
    missing = next((one for one in packages if find_spec(one) is None), None)
    if missing is not None:
        raise ImportError(f"hscc serve needs {missing}: pip install 'hscc[serve]'")
