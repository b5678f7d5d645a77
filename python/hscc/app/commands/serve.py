"""``hscc serve``."""

from __future__ import annotations

import os
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..options import Threads, app, set_threads
from ..served import Policy, Wanted

if TYPE_CHECKING:
    from ...serving.web.limits import WebLimits
    from ...serving.web.scale import Scale
    from ...serving.web.service import Service

LOCAL = ("127.0.0.1", "::1", "localhost")
MIB = 2**20


@app.command()
def serve(
    models: Annotated[list[str], typer.Argument(help="[NAME=]FILE[,file.py:function]: weights, .pt2 or ONNX.")],
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
    ray: Annotated[bool, typer.Option("--ray", help="Serve by Ray Serve's replicas, HTTP alone.")] = False,
    replicas: Annotated[str | None, typer.Option(help="With --ray: N, or MIN-MAX that follow the load; 1.")] = None,
    gpus_per_replica: Annotated[
        float | None, typer.Option(min=0, help="With --ray: e.g. 0.5; default: 1 where there are any.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="With --ray: the cluster, auto or HOST:PORT; default: one of this machine.")
    ] = None,
    triton_repository: Annotated[
        Path | None, typer.Option(help="Write a model repository for NVIDIA Triton there instead.")
    ] = None,
) -> None:
    """Answers requests of the Open Inference Protocol by HTTP, and by gRPC: tensors, PNG, JPEG and DICOM files.

    Example: hscc serve brain=small.safetensors --model examples/brain_mri/model.py:build
    """
    scaled = {"replicas": replicas, "gpus-per-replica": gpus_per_replica, "ray-address": ray_address}
    idle = {"grpc-port": grpc_port, "device": devices or None, "litserve": litserve or None}
    idle |= {"triton-repository": triton_repository}
    _refuse("with --ray, which does without" if ray else "without --ray", idle if ray else scaled)
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
    from ...serving.web.scale import Scale

    scale = Scale.parse(replicas or "1", threads, gpus_per_replica)
    packages = {"litserve": litserve, "ray": ray, "grpc": grpc_port is not None}
    _need(*(name for name, needed in packages.items() if needed))
    from ...serving.web import supervisor

    limits = {"batch": batch, "delay_ms": delay_ms, "queue": queue, "images": min(64, queue)}
    options = {"limits": limits, "devices": devices, "any_size": any_size, "policy": policy}
    if ray:
        options |= {"threads": threads, "policy": policy.anywhere()}
        make = partial(_replicated, [one.anywhere() for one in wanted], options, (key, max_body * MIB))
        sys.exit(_ray(make, scale, (host, port), ray_address))
    if litserve or supervisor.SOCKET in os.environ:
        set_threads(threads)
        sys.exit(_worker(wanted, options, (key, max_body * MIB), (host, port, grpc_port), litserve))
    from ...serving.web.sockets import listen

    listening = listen(host, port)
    command = [sys.executable, "-m", "hscc", *sys.argv[1:]]
    typer.echo(f"Serving on {host}:{port}; stop with Ctrl-C.")
    sys.exit(supervisor.supervise(command, listening, os.environ))


def _worker(wanted: list, options: dict, limited: tuple, address: tuple[str, int, int | None], litserve: bool) -> int:
    import socket

    from ...serving.web import supervisor

    host, port, grpc_port = address
    if litserve:
        from ...serving.engine import Limits
        from ...serving.web import lit

        sources = [lit.Source(str(one.file), one.source, one.name, options["any_size"]) for one in wanted]
        return lit.run(sources, Limits(**options["limits"]), _web(limited[1]), limited[0], (host, port))
    from ...serving.web import worker

    listening = socket.socket(fileno=int(os.environ[supervisor.SOCKET]))
    rpc = None if grpc_port is None else f"{f'[{host}]' if ':' in host else host}:{grpc_port}"
    return worker.run(_service(wanted, options, limited), listening, rpc, int(os.environ[supervisor.PARENT]))


def _ray(make: partial, scale: Scale, address: tuple[str, int], cluster: str | None) -> int:
    from ...serving.web import privacy
    from ...serving.web.sockets import listen

    if cluster is None:
        listen(*address).close()
    privacy.settle(alone=cluster is None)
    from ...serving.web import cluster as driver  # imports Ray

    typer.echo(f"Serving on {address[0]}:{address[1]} by Ray; stop with Ctrl-C.")
    return driver.run(make, scale, address, cluster, typer.echo)


def _replicated(wanted: list, options: dict, limited: tuple, gpu: bool) -> Service:
    """The service of one replica, which Ray gives its GPUs, or none."""
    set_threads(options["threads"] or 1)
    return _service(wanted, options | {"devices": None if gpu else ["cpu"]}, limited)


def _service(wanted: list, options: dict, limited: tuple[str | None, int]) -> Service:
    """Engines that have not been started yet, of these models, behind a key, with bodies of so many bytes."""
    from ...serving.engine import Engine, Limits
    from ...serving.web.service import Service

    limits, any_size = Limits(**options["limits"]), options["any_size"]
    engines = [
        Engine(one.load(any_size), limits, guard=options["policy"].of(one, any_size), devices=options["devices"])
        for one in wanted
    ]
    return Service(engines, _web(limited[1]), limited[0])


def _web(body: int) -> WebLimits:
    from ...serving.web.limits import WebLimits

    return WebLimits(body=body, json=min(body, WebLimits.json))


def _refuse(why: str, options: dict[str, object]) -> None:
    """Raises ValueError for an option that would do nothing."""
    given = next((name for name, value in options.items() if value is not None), None)
    if given is not None:
        raise ValueError(f"{given}: got it {why}, expected it not")


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
        extra = "ray" if missing == "ray" else "serve"
        raise ImportError(f"hscc serve needs {missing}: pip install 'hscc[{extra}]'")
