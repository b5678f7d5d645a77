"""Why a request got no answer; each error carries the HTTP status that says so."""

from __future__ import annotations


class Refused(Exception):
    """The base of all: one sentence for the caller, without internal names; ``status`` is HTTP's, ``kind`` metrics'."""

    status, kind = 500, "failed"


class BadRequest(Refused, ValueError):
    """The request itself is wrong; asking again gives the same."""

    status, kind = 400, "bad_request"


class Foreign(BadRequest):
    """The guard says that images are unlike those the model was calibrated on, and the policy is to refuse them."""

    status, kind = 422, "foreign"


class Overloaded(Refused, RuntimeError):
    """The queue is full; later it may not be."""

    status, kind = 429, "overloaded"


class Failed(Refused, RuntimeError):
    """The model raised on this request alone; its error is the ``__cause__``, for the log and not for the caller."""


class Unavailable(Refused, RuntimeError):
    """The engine is starting, draining or stopped."""

    status, kind = 503, "unavailable"


class TimedOut(Refused, TimeoutError):
    """No answer within the request's time."""

    status, kind = 504, "timed_out"
