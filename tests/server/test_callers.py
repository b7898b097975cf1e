"""Who counts as one caller where nobody is asked who they are: a host, whatever its connections and ports."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import grpc
import pytest

from tests.support.proxy import proxied
from tests.support.server import Wire, serving_node
from vecstore import Database
from vecstore.server.admission import AdmissionSettings
from vecstore.server.caller import host_of
from vecstore.server.node import Node
from vecstore.server.settings import ServerSettings
from vecstore.wire.v1 import store_pb2 as pb

BURST = 5


@pytest.fixture
def node(database: Database) -> Iterator[Node]:
    """Return a server without authentication, where a caller has few reads to begin with."""
    server = ServerSettings(listen="127.0.0.1:0", http="")
    limits = AdmissionSettings(reads_per_s=0.01, burst_s=100 * BURST)
    with serving_node(database, server=server, limits=limits) as node:
        yield node


def answered(wire: Wire) -> int:
    """Read more often than one caller may; return how often there was an answer."""
    codes = []
    for _ in range(2 * BURST):
        try:
            wire("ListCollections", pb.ListCollectionsRequest())
            codes.append(grpc.StatusCode.OK)
        except grpc.RpcError as error:
            codes.append(error.code())
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    return codes.count(grpc.StatusCode.OK)


def test_each_host_has_its_own_rates(node: Node) -> None:
    """What one host has used up another one still has; a second connection of the first one has nothing more."""
    with contextlib.ExitStack() as stack:
        # Through a proxy each, so that no two share a connection.
        ways = [
            stack.enter_context(proxied(node.grpc_address, host)) for host in ("127.0.0.1", "127.0.0.1", "127.0.0.2")
        ]
        wires = [stack.enter_context(contextlib.closing(Wire(way.address))) for way in ways]
        assert [answered(wire) for wire in wires] == [BURST, 0, BURST]


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.7:4711", "10.0.0.7"),
        ("ipv6:[::1]:4711", "[::1]"),
        ("ipv6:%5B2001:db8::7%5D:4711", "[2001:db8::7]"),
        ("unix:/run/vecstore", ""),
        ("", ""),
    ],
)
def test_a_host_is_read_from_what_grpc_calls_a_peer(peer: str, host: str) -> None:
    """The port is not part of it; what has no address is nobody in particular."""
    assert host_of(peer) == host
