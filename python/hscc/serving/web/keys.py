"""The key that clients show."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

SHORTEST = 16


def check(key: str) -> str:
    """The key itself. Raises ValueError, without it, for one that is easily guessed or that no header can carry."""
    if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or key != key.strip():
        raise ValueError(f"api-key: got one that is no key, expected {SHORTEST} printable ASCII characters or more")
    return key


def shown(headers: Mapping[str, str], key: str) -> bool:
    """Whether ``authorization: Bearer KEY`` or ``x-api-key: KEY`` has the key, compared in constant time.

    ``headers`` has lower-case names.
    """
    scheme, _, given = headers.get("authorization", "").partition(" ")
    given = given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    return hmac.compare_digest(given.encode(), key.encode())
