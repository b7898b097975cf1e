"""Where servers are and with what a client shows who it is: addresses, TLS, token, and where a token may travel.

Pure but for what is read once, when a client is made: the environment (`VECSTORE_TOKEN`, `VECSTORE_CA`) and the files
that `TLS` names. A token travels over TLS, or in clear to this machine's own loopback; over the network in clear only
where ``VECSTORE_PLAINTEXT_TOKEN=allow`` says that the network is trusted.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidArgument, NotFound
from ..inputs import shown
from ..values import TLS

__all__ = ["Access", "access_of", "endpoints_of", "is_address", "is_loopback"]

PUBLIC = "public"
"""As a CA: the certificate authorities that come with gRPC."""
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):(?P<port>[0-9]{1,5})")
_TOKEN = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Access:
    """With what a client reaches its servers.

    Attributes
    ----------
    token
        Sent with every call; None for none.
    is_tls
        Whether connections are encrypted and the servers prove who they are.
    ca, cert, key
        PEM; a `ca` of None is the authorities that come with gRPC.
    """

    token: str | None = None
    is_tls: bool = False
    ca: bytes | None = None
    cert: bytes | None = None
    key: bytes | None = None

    def __repr__(self) -> str:
        # The token and the key are nobody's business, in logs least of all.
        return f"Access(token={'set' if self.token else None}, is_tls={self.is_tls})"


def is_address(text: str) -> bool:
    """Tell whether a text is ``host:port``."""
    match = _ADDRESS.fullmatch(text)
    return match is not None and 0 < int(match["port"]) < 65_536


def is_loopback(address: str) -> bool:
    """Tell whether an address is of this machine's loopback, which no other machine can listen to."""
    host = address.rpartition(":")[0].strip("[]").lower()
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def endpoints_of(given: Any) -> tuple[str, ...]:
    """Return the addresses given, each once, in the order given."""
    listed: Sequence[Any] = [given] if isinstance(given, str) else given
    if not isinstance(listed, Sequence) or not listed:
        raise InvalidArgument(f"endpoints: {shown(given)} given; allowed are host:port or a sequence of such")
    for each in listed:
        if not isinstance(each, str) or not is_address(each):
            raise InvalidArgument(f"endpoints: {shown(each)} is not host:port, with a port from 1 to 65535")
    return tuple(dict.fromkeys(each.lower() for each in listed))


def access_of(endpoints: Sequence[str], token: Any, tls: Any, environment: Mapping[str, str] = os.environ) -> Access:
    """Return with what these endpoints are reached; what is not given comes from the environment.

    Raises
    ------
    InvalidArgument
        A token that is no header text, or that would travel over the network in clear.
    NotFound
        A file that `tls` or the environment names does not exist.
    """
    if token is None:
        token = environment.get("VECSTORE_TOKEN", "").strip() or None
    if token is not None and (not isinstance(token, str) or not _TOKEN.fullmatch(token)):
        raise InvalidArgument("token: what was given is not a token; allowed is printable ASCII without spaces")
    if not isinstance(tls, bool | TLS):
        raise InvalidArgument(f"tls: {shown(tls)} given; allowed are True, False and vecstore.TLS")
    ca = environment.get("VECSTORE_CA") or None
    if tls is False and ca is None:
        _check_plaintext(endpoints, token, environment)
        return Access(token)
    files = tls if isinstance(tls, TLS) else TLS()
    ca = files.ca or ca
    if (files.cert is None) != (files.key is None):
        raise InvalidArgument("tls: a certificate needs its key, and a key its certificate; give both cert and key")
    return Access(
        token,
        is_tls=True,
        ca=None if ca is None or ca == PUBLIC else _read(ca, "ca"),
        cert=None if files.cert is None else _read(files.cert, "cert"),
        key=None if files.key is None else _read(files.key, "key"),
    )


def _check_plaintext(endpoints: Sequence[str], token: str | None, environment: Mapping[str, str]) -> None:
    if token is None or environment.get("VECSTORE_PLAINTEXT_TOKEN") == "allow":
        return
    for address in endpoints:
        if not is_loopback(address):
            raise InvalidArgument(
                f"token: it would travel to {address} in clear",
                hint="connect with tls=True or vecstore.TLS(ca=...); VECSTORE_PLAINTEXT_TOKEN=allow trusts the network",
                details={"endpoint": address},
            )


def _read(path: str, what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as exc:
        raise NotFound(f"tls: {what}: {path}: no such file", details={"file": path}) from exc
    except OSError as exc:
        raise InvalidArgument(f"tls: {what}: {path} cannot be read: {exc}", details={"file": path}) from exc
