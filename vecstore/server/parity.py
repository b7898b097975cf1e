"""What must agree between the servers of two Regions, so that callers find after a failover what they had before.

Each option of a server is one of three kinds, and docs/operations.md has them as a table: those that must agree, those
that must not, and those that are each server's own, since they say what its machine is. Options travel as they are;
what is not to be read, such as tokens, travels as a code under a key that only stores of the lineage have, so that two
of them can tell whether they have the same and nobody can tell what.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import msgspec

from .settings import Settings

__all__ = ["AGREE", "DIFFER", "agreed", "code_of", "key_of"]

AGREE: dict[str, tuple[str, ...]] = {
    "server": ("archive", "device", "message_bytes_max", "streams_max"),
    "auth": ("jwt_issuer", "jwt_audience", "jwt_claim", "jwt_leeway_s"),
    "limits": (
        "reads_per_s",
        "writes_per_s",
        "points_read_per_s",
        "points_written_per_s",
        "burst_s",
        "queue_calls_max",
        "queue_wait_s_max",
        "overload_wait_s_max",
        "searches_max",
        "writes_min",
        "writes_max",
        "streams_max",
        "streams_per_caller_max",
        "stream_idle_s_max",
        "receive_s_max",
    ),
    "store": (
        "memory_bytes_max",
        "disk_free_bytes_min",
        "unsealed_rows_max",
        "pending_calls_max",
        "pending_bytes_max",
        "request_ids_max",
        "view_age_s_max",
        "archive_interval_s",
        "slot_retained_bytes_max",
        "device_backend",
        "device_rows_min",
    ),
}
"""By section. What `auth.tokens` and `auth.jwt_keys` name may stand elsewhere; what these files hold must agree."""
DIFFER: dict[str, tuple[str, ...]] = {
    "server": ("data", "listen", "http", "region"),
    "replication": ("standby_of", "slot", "synchronous", "advertise"),
}
_MARKED = {("server", "archive")}
"""Compared by their codes: who reads what a store says need not learn where the archive is."""


def agreed(settings: Settings) -> dict[str, Any]:
    """Return the values of the options that must agree, by name, those that are only compared by code left out."""
    return {
        f"{section}.{name}": getattr(getattr(settings, section), name)
        for section, names in AGREE.items()
        for name in names
        if (section, name) not in _MARKED
    }


def key_of(secret: bytes) -> bytes:
    """Return the key of codes, made of a lineage's secret."""
    return hmac.digest(secret, b"vecstore parity", "sha256")


def code_of(key: bytes, value: Any) -> str:
    """Return the code of a plain value; "" for nothing."""
    if not value:
        return ""
    return hmac.new(key, msgspec.json.encode(value, order="deterministic"), hashlib.sha256).hexdigest()[:32]
