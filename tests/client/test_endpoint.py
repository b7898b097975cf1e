"""Addresses, and where a token may travel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vecstore import TLS, InvalidArgument, NotFound
from vecstore.client.channel import options, service_config
from vecstore.client.endpoint import access_of, endpoints_of, is_address, is_loopback


@pytest.mark.parametrize("text", ["localhost:1", "a.b-c_d:65535", "10.0.0.1:7601", "[::1]:7601"])
def test_addresses_are_host_and_port(text: str) -> None:
    """A name or a number of a machine, and a port."""
    assert is_address(text)
    assert endpoints_of(text) == (text,)


@pytest.mark.parametrize(
    "given",
    ["", "host", "host:", "host:0", "host:65536", "http://host:1", "a b:1", "::1:5", [], ["a:1", 5], 5, None, {"a:1"}],
    ids=repr,
)
def test_what_is_no_address_is_refused(given: Any) -> None:
    """Anything else is refused, naming it."""
    with pytest.raises(InvalidArgument, match="endpoints"):
        endpoints_of(given)


def test_each_endpoint_counts_once() -> None:
    """Names of machines have no case; the order given is kept."""
    assert endpoints_of(["B:1", "a:1", "b:1"]) == ("b:1", "a:1")


@pytest.mark.parametrize(
    ("address", "expected"),
    [("localhost:1", True), ("127.0.0.1:1", True), ("127.9.9.9:1", True), ("[::1]:1", True),
     ("10.0.0.1:1", False), ("localhost.evil:1", False), ("127.0.0.1.evil:1", False), ("[2001:db8::1]:1", False)],
)  # fmt: skip
def test_loopback_is_this_machine_alone(address: str, expected: bool) -> None:
    """Only addresses that no other machine can have are loopback."""
    assert is_loopback(address) is expected


def test_a_token_travels_in_clear_to_loopback_alone() -> None:
    """One endpoint over the network is enough to refuse; TLS, or a network that is trusted, allows it."""
    secret = "s" * 20
    assert access_of(["localhost:1"], secret, False, {}).token == secret
    with pytest.raises(InvalidArgument, match="clear"):
        access_of(["localhost:1", "db:1"], secret, False, {})
    with pytest.raises(InvalidArgument, match="clear"):
        access_of(["db:1"], None, False, {"VECSTORE_TOKEN": secret})
    assert access_of(["db:1"], secret, True, {}).is_tls
    assert not access_of(["db:1"], None, False, {}).is_tls
    trusted = access_of(["db:1"], secret, False, {"VECSTORE_PLAINTEXT_TOKEN": "allow"})
    assert (trusted.token, trusted.is_tls) == (secret, False)


def test_the_environment_fills_what_is_not_given(tmp_path: Path) -> None:
    """Token and authority come from the environment unless they are given; an authority there turns TLS on."""
    (tmp_path / "ca.pem").write_bytes(b"pem")
    (tmp_path / "own.pem").write_bytes(b"own")
    environment = {"VECSTORE_TOKEN": "from-environment\n", "VECSTORE_CA": str(tmp_path / "ca.pem")}
    found = access_of(["db:1"], None, False, environment)
    assert (found.token, found.is_tls, found.ca) == ("from-environment", True, b"pem")
    given = access_of(["db:1"], "given", TLS(ca=str(tmp_path / "own.pem")), environment)
    assert (given.token, given.ca) == ("given", b"own")
    assert access_of(["db:1"], None, False, {"VECSTORE_CA": "public"}).ca is None
    assert "from-environment" not in repr(found)


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    """A token with spaces, half of a certificate, a file that is not there, and what is no TLS setting."""
    for token in ("two words", "é", "", 5):
        with pytest.raises(InvalidArgument, match="token"):
            access_of(["localhost:1"], token, False, {})
    (tmp_path / "cert.pem").write_bytes(b"pem")
    with pytest.raises(InvalidArgument, match="key"):
        access_of(["a:1"], None, TLS(cert=str(tmp_path / "cert.pem")), {})
    with pytest.raises(NotFound, match=r"none\.pem"):
        access_of(["a:1"], None, TLS(ca=str(tmp_path / "none.pem")), {})
    with pytest.raises(InvalidArgument, match="tls"):
        access_of(["a:1"], None, "yes", {})


def test_grpc_retries_what_it_can() -> None:
    """With one endpoint gRPC retries UNAVAILABLE; with several that is left to the next; a proxy sees no token."""
    assert "UNAVAILABLE" in service_config(1)
    assert "UNAVAILABLE" not in service_config(2)
    assert "RESOURCE_EXHAUSTED" in service_config(2)
    assert ("grpc.enable_http_proxy", 0) in options(1, access_of(["localhost:1"], None, False, {}))
    assert ("grpc.enable_http_proxy", 0) not in options(1, access_of(["a:1"], None, True, {}))
