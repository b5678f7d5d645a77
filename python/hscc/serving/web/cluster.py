"""The same routes on Ray Serve: replicas on one machine or several, behind Ray's proxies; import after ``privacy``.

Not the default: what goes between Ray's processes is pickled, and it is ready later.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, ProxyLocation
from ray.serve.schema import LoggingConfig

from ..shutdown import SIGNALS
from . import proxy
from .limits import WebLimits
from .replica import APP, DEPLOYMENT, Make, Replica
from .scale import Scale
from .worker import BROKEN, DRAIN

log = logging.getLogger("hscc.serving")
HEAD = "node:__internal_head__"  # a resource by which Ray marks it
LOOPBACK = ("127.0.0.1", "::1", "localhost")
STORE = 512 * 2**20  # bytes of shared memory, at most, for bodies on their way
HEALTH = 2.0  # seconds between two looks at a replica; the third that fails replaces it
QUIET = LoggingConfig(enable_access_log=False, log_level="WARNING")


def run(make: Make, scale: Scale, address: tuple[str, int], cluster: str | None, told: Callable[[str], None]) -> int:
    """Serves until SIGTERM or Ctrl-C, then finishes what is under way; returns 0, or BROKEN where the head has died.

    Args:
        make: builds the service, with engines on GPUs or not; called here once, to check it, and in every replica,
            where it comes pickled.
        address: host and port of Ray's HTTP proxies; on the cluster's head alone where the host is a loopback one.
        cluster: ``auto`` or ``HOST:PORT`` of one that runs; None starts one on this machine, and ends it.
        told: gets a line for the user when the replicas are ready.

    Raises:
        What ``make`` does; ConnectionError and ValueError for a cluster or replicas that cannot be.
    """
    if cluster is None:
        _check(scale, os.cpu_count() or 1, math.inf)
    elif cluster != "auto":
        _reach(cluster)
    service = make(scale.gpus != 0)
    digests, limits, batch = [one.model.digest for one in service.engines], service.limits, service.engines[0].limits
    del service  # its weights
    try:
        with _connected(cluster, limits):
            scale = _fitting(scale, cluster)
            replica = _deployment(scale, limits.connections, batch.batch).bind(make, scale.gpus > 0, digests)
            where = ProxyLocation.HeadOnly if address[0] in LOOPBACK else ProxyLocation.EveryNode
            try:
                serve.start(where, {"host": address[0], "port": address[1]}, logging_config=QUIET)
                serve.run(replica, name=APP, logging_config=QUIET)
                told("The replicas are ready.")
                while _lives():
                    time.sleep(HEALTH)
                log.error("the head of Ray's cluster has died")
                return BROKEN
            except RuntimeError as error:
                raise ValueError(f"replicas: got one, or a proxy, that does not start: {_cause(error)}") from error
            finally:
                _ignore_signals()
                if _lives():
                    serve.delete(APP)  # waits for what is under way
                    if cluster is not None:
                        serve.shutdown()
    except (KeyboardInterrupt, SystemExit):  # the latter by Ray's own handler of SIGTERM, while it starts
        return 0


@contextmanager
def _connected(cluster: str | None, limits: WebLimits) -> Iterator[None]:
    """A driver of that cluster, or of one of its own whose sockets are this machine's; SIGTERM is as Ctrl-C."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    inherited = {"env_vars": proxy.environment(limits)}  # by Serve's proxies, on all machines
    common = {"logging_level": logging.WARNING, "log_to_driver": False, "runtime_env": inherited}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if cluster is None:
            ray.init("local", include_dashboard=False, object_store_memory=STORE, **common)
        else:
            _join(cluster, common)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray has set its own
        yield
    finally:
        _ignore_signals()
        ray.shutdown()


def _join(cluster: str, common: dict) -> None:
    try:
        ray.init(cluster, **common)
    except ConnectionError as error:
        wanted = "a cluster with our token (~/.ray/auth_token), or RAY_AUTH_MODE=disabled for one without"
        raise ConnectionError(f"ray-address: got {cluster!r}, expected {wanted}: {error}") from error


def _fitting(scale: Scale, cluster: str | None) -> Scale:
    """With a number of GPUs. Raises ValueError where Serve runs already, or where replicas would wait for ever."""
    if serve.status().proxies:
        raise ValueError(f"ray-address: got {cluster!r} where Serve runs already, expected a cluster without it")
    there = ray.cluster_resources()
    cpus, gpus = there.get("CPU", 0), there.get("GPU", 0)
    scale = replace(scale, gpus=min(1, gpus)) if scale.gpus is None else scale
    _check(scale, cpus, gpus)
    return scale


def _lives() -> bool:
    """Whether the node is there that Ray cannot do without."""
    return any(one["Alive"] and HEAD in one["Resources"] for one in ray.nodes())


def _check(scale: Scale, cpus: float, gpus: float) -> None:
    lacking = scale.lacking(cpus, gpus)
    if lacking is not None:
        raise ValueError(f"replicas: got {lacking}")


def _reach(address: str) -> None:
    """Raises ValueError for no HOST:PORT, and ConnectionError at once, where Ray would try for a minute."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536 or "/" in host:
        raise ValueError(f"ray-address: got {address!r}, expected auto or HOST:PORT")
    try:
        socket.create_connection((host, int(port)), 5).close()
    except OSError as error:
        raise ConnectionError(f"ray-address: got {address!r}, where nothing answers: {error}") from error


def _cause(error: RuntimeError) -> str:
    """The last line of what Ray tells of replicas that do not start, or else of its error."""
    found = [one.message for app in serve.status().applications.values() for one in app.deployments.values()]
    return ("".join(found) or str(error)).strip().rpartition("\n")[2]


def _deployment(scale: Scale, connections: int, batch: int) -> serve.Deployment:
    follows = AutoscalingConfig(
        min_replicas=scale.least,
        max_replicas=scale.most,
        target_ongoing_requests=2 * batch,  # one batch runs, one fills
    )
    return serve.deployment(
        Replica,
        name=DEPLOYMENT,
        **({"num_replicas": scale.least} if scale.least == scale.most else {"autoscaling_config": follows}),
        ray_actor_options={"num_cpus": scale.threads, "num_gpus": scale.gpus},
        max_ongoing_requests=connections,  # the engines' queues say when it is too much
        max_queued_requests=connections,
        health_check_period_s=HEALTH,
        graceful_shutdown_timeout_s=DRAIN,
        graceful_shutdown_wait_loop_s=0.2,
    )


def _ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
