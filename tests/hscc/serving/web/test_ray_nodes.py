"""``hscc serve --ray`` on two nodes, one of which dies under load. Run by ``make test-ray``."""

from __future__ import annotations

import concurrent.futures
import os
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import psutil
import pytest
import torch
from hscc.serving.models import Served
from hscc.serving.web import privacy

from .conftest import Server, infer_json

privacy.settle(alone=True)  # before Ray is imported; nodes of one machine talk on its loopback address
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed: make test-ray")

from .test_ray import INFER, check, names, until  # noqa: E402 (it skips itself where Ray is not there)

pytestmark = pytest.mark.slow
NODE = {"num_cpus": 2, "object_store_memory": 100 * 2**20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[utils.Cluster]:
    """Two nodes with room for both replicas on each."""
    made = utils.Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    made.add_node(**NODE)
    made.wait_for_nodes()
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def server(serve, cluster: utils.Cluster) -> Server:
    found = serve("--ray", "--ray-address", cluster.address, "--replicas", "2")
    found.wait(120)
    return found


def replicas(cluster: utils.Cluster) -> list[list[int]]:
    """Process numbers of the replicas, a list for each node."""
    found = []
    for node in cluster.list_all_nodes():
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        found.append([one.pid for one in raylet.children() if one.name().startswith("ray::ServeRepli")])
    return found


def shares(client: httpx.Client) -> list[float]:
    """The answers of each replica."""
    lines = client.get("/metrics").text.splitlines()
    return [float(one.split()[-1]) for one in lines if one.startswith("hscc_requests_total{") and 'status="ok"' in one]


@dataclass
class Load:
    """Clients that ask for ever, each again until it has its answer, which is compared with the model's."""

    url: str
    xs: list[torch.Tensor]
    expected: list[torch.Tensor]
    ended: threading.Event = field(default_factory=threading.Event)
    answered: int = 0
    retries: list[int] = field(default_factory=list)  # of each request that was asked again

    def client(self, number: int) -> None:
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while not self.ended.is_set():
                i = (number + self.answered) % len(self.xs)
                self.answered += self.ask(client, i)

    def ask(self, client: httpx.Client, i: int) -> int:
        tries, until = 0, time.monotonic() + 60
        while True:
            assert time.monotonic() < until, "a request that was never answered"
            try:
                response = client.post(INFER, json=infer_json(self.xs[i]))
            except httpx.TransportError:
                response = None
            if response is not None and response.status_code != 503:
                check(response, self.expected[i])
                self.retries += [tries] if tries else []
                return 1
            tries += 1
            time.sleep(0.2)


def test_a_node_and_a_replica_die_under_load(cluster: utils.Cluster, server: Server, model: Served) -> None:
    until(lambda: [len(one) for one in replicas(cluster)] == [1, 1], 30)  # spread; names come late
    xs = [torch.randn(2, 1, 16, 16) for _ in range(8)]
    load = Load(server.url, xs, [model.module(x) for x in xs])
    with concurrent.futures.ThreadPoolExecutor(4) as pool, httpx.Client(base_url=server.url, timeout=30) as client:
        running = [pool.submit(load.client, i) for i in range(4)]
        try:
            until(lambda: load.answered > 50, 30)
            until(lambda: len(shares(client)) == 2 and min(shares(client)) > 10, 30)  # both answer

            before = names(client)
            cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)
            until(lambda: len(names(client)) == 2 and len(names(client) - before) == 1)  # Ray has started another

            until(lambda: [len(one) for one in replicas(cluster)] == [2], 30)
            ((killed, _),) = replicas(cluster)
            before = names(client)
            psutil.Process(killed).kill()
            until(lambda: len(names(client)) == 2 and len(names(client) - before) == 1)

            answered = load.answered
            until(lambda: load.answered > answered + 50, 30)
        finally:
            load.ended.set()
        for one in running:
            one.result()  # raises what a client has found
    print(f"{load.answered} answers, {len(load.retries)} of them after {load.retries} tries more")


def test_a_cluster_that_serves_already_is_refused(serve, cluster: utils.Cluster, server: Server) -> None:
    second = serve("--ray", "--ray-address", cluster.address)
    assert second.process.wait(60) == 2
    assert "where Serve runs already, expected a cluster without it" in second.process.stderr.read()


def test_a_cluster_that_is_not_there(serve) -> None:
    second = serve("--ray", "--ray-address", "127.0.0.1:1")
    assert second.process.wait(60) == 2
    assert second.process.stderr.read().startswith("error: ray-address: got '127.0.0.1:1', where nothing answers")


def test_a_cluster_with_another_token(serve, cluster: utils.Cluster) -> None:
    second = serve("--ray", "--ray-address", cluster.address, RAY_AUTH_TOKEN=secrets.token_hex(32))
    assert second.process.wait(120) == 2
    told = second.process.stderr.read()
    assert f"error: ray-address: got '{cluster.address}', expected a cluster with our token" in told


def test_sigterm_leaves_the_cluster_without_serve(cluster: utils.Cluster, server: Server) -> None:
    server.process.terminate()
    assert server.process.wait(60) == 0
    assert sum(map(len, replicas(cluster))) == 0
    (head,) = cluster.list_all_nodes()
    assert head.any_processes_alive()
    with pytest.raises(httpx.TransportError):
        httpx.get(server.url)
