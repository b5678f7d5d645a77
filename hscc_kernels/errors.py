"""The one error that is ours: a backend that was asked for and cannot run."""


class BackendUnavailable(RuntimeError):
    """``backend=`` (or ``HSCC_BACKEND``) named a backend that cannot run this call; the text says why."""
