"""What Ray Serve starts, on any machine: all engines, and the routes over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ray
from ray import serve
from ray.serve._private import replica as theirs
from starlette.applications import Starlette

from ..metrics import collected, written
from . import rest
from .service import Service

APP, DEPLOYMENT = "hscc", "Replica"
Make = Callable[[bool], Service]


class Everywhere(Service):
    """A service whose metrics are those of all replicas."""

    async def metrics(self) -> tuple[bytes, str]:
        asked = serve.get_deployment_handle(DEPLOYMENT, APP).broadcast("families")
        found = await asked.results_async(timeout_s=self.limits.seconds, return_exceptions=True)  # one may be dying
        return written(family for families in found if not isinstance(families, Exception) for family in families)


@serve.ingress()
class Replica:
    """A :class:`Service` whose engines are ready; Ray's proxies ask it through ``rest.application``.

    Args:
        make: builds the service, on GPUs or not.
        digests: SHA-256 of the models' files; ValueError where this machine has other ones.
    """

    def __init__(self, make: Make, gpu: bool, digests: Sequence[str]) -> None:
        _bind_here()
        made = make(gpu)
        found = [engine.model.digest for engine in made.engines]
        if found != [*digests]:
            raise ValueError(
                f"models: got files of SHA-256 {found} on a machine, expected {[*digests]} as on the first"
            )
        self.service = Everywhere(made.engines, made.limits, made.key)
        for engine in made.engines:
            engine.start()

    def __serve_build_asgi_app__(self) -> Starlette:
        return rest.application(self.service)

    def check_health(self) -> None:
        """Raises where Ray should start another one in this one's place."""
        if not self.service.live:
            raise RuntimeError("a worker of an engine has died")

    def families(self) -> list:
        """This replica's metrics, labelled with its name."""
        name = serve.get_replica_context().replica_id.unique_id
        return collected((engine.metrics for engine in self.service.engines), replica=name)


def _bind_here() -> None:
    """Ray opens a port of each replica on every address, and has no option for it: here on its node's address alone.

    Raises AttributeError, so that no replica starts, where another Ray does it otherwise.
    """
    own, here = theirs.add_port_to_grpc_server, ray.util.get_node_ip_address()
    place = f"[{here}]" if ":" in here else here
    theirs.add_port_to_grpc_server = lambda server, address: own(server, address.replace("[::]", place))
