"""What Ray must find in the environment before it is imported, so that it keeps to itself."""

from __future__ import annotations

import os

ALWAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # or it reports its use to its makers
    "RAY_AUTH_MODE": "token",  # each call of its processes shows the token of ~/.ray/auth_token
}
ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # as no cluster is wanted, its sockets are of the loopback address


def settle(alone: bool) -> None:
    """Sets what the user has not set; ``alone`` is for a cluster that is started here, of this machine."""
    for name, value in (ALWAYS | ALONE if alone else ALWAYS).items():
        os.environ.setdefault(name, value)
