"""What the server refuses beside what the Engine does, and what a client is told."""

from __future__ import annotations

from ..errors import Refused


class Unauthorized(Refused, PermissionError):
    """No key, or a wrong one."""

    status, kind = 401, "unauthorized"


class NotFound(Refused, LookupError):
    """No such model."""

    status, kind = 404, "not_found"


class TooSlow(Refused, TimeoutError):
    """The body did not arrive in time."""

    status, kind = 408, "too_slow"


class TooLarge(Refused, ValueError):
    """More bytes or pixels than the limits allow."""

    status, kind = 413, "too_large"


class Unsupported(Refused, ValueError):
    """A content type that is not read, or not by this model."""

    status, kind = 415, "unsupported"


class ClientGone(Refused, ConnectionError):
    """The client has ended its connection: nobody reads this."""

    status, kind = 499, "cancelled"


def told(error: BaseException) -> tuple[int, str]:
    """(HTTP status, one sentence) for the client; of a fault of ours nothing but that it is one."""
    if isinstance(error, Refused) and error.args:
        return error.status, " ".join(str(error.args[0]).split())
    return 500, "internal error: the request got no answer; the server's log says why"
