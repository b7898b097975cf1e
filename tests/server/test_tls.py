"""Encryption and certificates on real sockets: whose a client believes, whose a server believes, and new ones."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import vecstore
from tests.support.server import serving_node
from vecstore import Database
from vecstore.errors import InvalidArgument
from vecstore.server.auth import AuthSettings, entry_text
from vecstore.server.caller import Grant
from vecstore.server.node import Node
from vecstore.server.settings import ReplicationSettings, TLSSettings
from vecstore.wire.methods import METHODS
from vecstore.wire.v1 import store_pb2 as pb

TIMEOUT_S = 10.0
LIST = next(method for method in METHODS if method.name == "ListCollections")


class Authority:
    """Issues certificates, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self._key = generate_private_key(SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"authority {folder.name}")])
        self.certificate = self._signed(self._name, self._key, None)
        self.file = folder / "authority.pem"
        self.file.write_bytes(self.certificate.public_bytes(Encoding.PEM))

    def issue(self, name: str, more: list[x509.GeneralName] | None = None) -> tuple[Path, Path]:
        """Return the files of a new certificate and its key."""
        key = generate_private_key(SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        certificate = self._signed(subject, key, more or [])
        files = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
        files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return files

    def _signed(self, subject: x509.Name, key: Any, more: list[x509.GeneralName] | None) -> x509.Certificate:
        """Return a certificate under other names, too; with None, that of an authority."""
        now = dt.datetime.now(dt.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=more is None, path_length=None), critical=True)
        )
        if more:
            made = made.add_extension(x509.SubjectAlternativeName(more), critical=False)
        return made.sign(self._key, hashes.SHA256())


LOCAL: list[x509.GeneralName] = [
    x509.DNSName("localhost"),
    x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
]


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    """Return one that is believed, and one that is not."""
    folder = tmp_path_factory.mktemp("tls")
    return Authority(folder / "ours"), Authority(folder / "theirs")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Database]:
    """Return a store."""
    with vecstore.open(str(tmp_path / "store")) as database:
        database.create_collection("docs", 2)
        yield database


def pair(files: tuple[Path, Path]) -> tuple[bytes, bytes]:
    """Return key and certificate as gRPC takes them."""
    return files[1].read_bytes(), files[0].read_bytes()


def listed(
    node: Node,
    authority: Authority,
    client: tuple[Path, Path] | None = None,
    metadata: tuple[tuple[str, str], ...] = (),
) -> tuple[grpc.StatusCode, list[str]]:
    """List the collections over a connection of its own; return the code, and what was listed."""
    key, chain = pair(client) if client is not None else (None, None)
    credentials = grpc.ssl_channel_credentials(authority.file.read_bytes(), key, chain)
    with grpc.secure_channel(node.grpc_address, credentials, [("grpc.enable_retries", 0)]) as channel:
        call = channel.unary_unary(LIST.path, LIST.request.SerializeToString, LIST.reply.FromString)
        try:
            reply = call(pb.ListCollectionsRequest(), timeout=TIMEOUT_S, metadata=metadata)
        except grpc.RpcError as error:
            return error.code(), []
    return grpc.StatusCode.OK, list(reply.names)


@pytest.fixture
def server_files(authorities: tuple[Authority, Authority]) -> tuple[Path, Path]:
    """Return a server's certificate and key."""
    return authorities[0].issue("server", LOCAL)


def test_a_server_with_a_certificate_is_believed_by_who_knows_its_authority(
    store: Database, authorities: tuple[Authority, Authority], server_files: tuple[Path, Path]
) -> None:
    """The right authority opens the connection; another one, or none, does not; and there is no plain way in."""
    tls = TLSSettings(certificate=str(server_files[0]), key=str(server_files[1]))
    with serving_node(store, tls=tls) as node:
        assert listed(node, authorities[0]) == (grpc.StatusCode.OK, ["docs"])
        assert listed(node, authorities[1])[0] is grpc.StatusCode.UNAVAILABLE
        with grpc.insecure_channel(node.grpc_address, [("grpc.enable_retries", 0)]) as channel:
            call = channel.unary_unary(LIST.path, LIST.request.SerializeToString, LIST.reply.FromString)
            with pytest.raises(grpc.RpcError):
                call(pb.ListCollectionsRequest(), timeout=TIMEOUT_S)


@pytest.fixture
def mutual(
    store: Database, authorities: tuple[Authority, Authority], server_files: tuple[Path, Path], tmp_path: Path
) -> Iterator[Node]:
    """Return a server that asks for certificates and knows three names, and a token."""
    entries = [
        '[[certificate]]\nsubject = "ingest"\ngrants = [{role = "write", collections = ["docs"]}]\n',
        '[[certificate]]\nsubject = "search.example"\ngrants = [{role = "read", collections = "*"}]\n',
        '[[certificate]]\nsubject = "blind"\ngrants = []\n',
        entry_text("by token", "s3cret", [Grant("read")]),
    ]
    (tmp_path / "tokens.toml").write_text("\n".join(entries))
    tls = TLSSettings(certificate=str(server_files[0]), key=str(server_files[1]), client_ca=str(authorities[0].file))
    with serving_node(store, tls=tls, auth=AuthSettings(tokens=str(tmp_path / "tokens.toml"))) as node:
        yield node


def test_certificates_say_who_calls(mutual: Node, authorities: tuple[Authority, Authority]) -> None:
    """A common name or another name with an entry has its grants; without an entry, it is nobody."""
    ours = authorities[0]
    assert listed(mutual, ours, ours.issue("ingest")) == (grpc.StatusCode.OK, ["docs"])
    assert listed(mutual, ours, ours.issue("x", [x509.DNSName("search.example")])) == (grpc.StatusCode.OK, ["docs"])
    assert listed(mutual, ours, ours.issue("blind")) == (grpc.StatusCode.OK, [])
    assert listed(mutual, ours, ours.issue("stranger", LOCAL))[0] is grpc.StatusCode.UNAUTHENTICATED


def test_a_token_counts_before_the_certificate(mutual: Node, authorities: tuple[Authority, Authority]) -> None:
    """A client that shows both is who its token says; a bad token is refused, whatever the certificate."""
    ours = authorities[0]
    files = ours.issue("blind")
    good, bad = (("authorization", "Bearer s3cret"),), (("authorization", "Bearer x"),)
    assert listed(mutual, ours, files, good) == (grpc.StatusCode.OK, ["docs"])
    assert listed(mutual, ours, ours.issue("ingest"), bad)[0] is grpc.StatusCode.UNAUTHENTICATED


def test_without_a_certificate_of_ours_there_is_no_connection(
    mutual: Node, authorities: tuple[Authority, Authority]
) -> None:
    """No certificate, one of another authority under the right name: none gets through."""
    ours, theirs = authorities
    assert listed(mutual, ours)[0] is grpc.StatusCode.UNAVAILABLE
    assert listed(mutual, ours, None, (("authorization", "Bearer s3cret"),))[0] is grpc.StatusCode.UNAVAILABLE
    assert listed(mutual, ours, theirs.issue("ingest"))[0] is grpc.StatusCode.UNAVAILABLE


def serial(node: Node, authority: Authority) -> int:
    """Return the serial number of the certificate that a new connection is shown."""
    context = ssl.create_default_context(cafile=str(authority.file))
    context.set_alpn_protocols(["h2"])
    host, _, port = node.grpc_address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        shown = wrapped.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


def test_a_new_certificate_is_shown_after_a_reload(
    store: Database, authorities: tuple[Authority, Authority], server_files: tuple[Path, Path]
) -> None:
    """New connections see the new certificate, an open one goes on; files that do not fit change nothing."""
    ours = authorities[0]
    tls = TLSSettings(certificate=str(server_files[0]), key=str(server_files[1]))
    with serving_node(store, tls=tls) as node:
        first = serial(node, ours)
        credentials = grpc.ssl_channel_credentials(ours.file.read_bytes())
        with grpc.secure_channel(node.grpc_address, credentials) as channel:
            call = channel.unary_unary(LIST.path, LIST.request.SerializeToString, LIST.reply.FromString)
            call(pb.ListCollectionsRequest(), timeout=TIMEOUT_S)
            ours.issue("server", LOCAL)
            node.reload(node.settings)
            second = serial(node, ours)
            assert second != first
            call(pb.ListCollectionsRequest(), timeout=TIMEOUT_S)
        # The certificate of another key: handshakes would fail, so it is not taken.
        server_files[1].write_bytes(ours.issue("other", LOCAL)[1].read_bytes())
        node.reload(node.settings)
        assert serial(node, ours) == second
        assert listed(node, ours)[0] is grpc.StatusCode.OK


def test_certificates_without_an_entry_for_them_are_no_way_in(
    store: Database, authorities: tuple[Authority, Authority], server_files: tuple[Path, Path]
) -> None:
    """A server that asks for certificates and was told nothing of what they allow does not start."""
    tls = TLSSettings(certificate=str(server_files[0]), key=str(server_files[1]), client_ca=str(authorities[0].file))
    with pytest.raises(InvalidArgument, match="certificates"), serving_node(store, tls=tls):
        pass


@pytest.mark.parametrize("what", ["certificate", "key", "client_ca"])
def test_files_that_cannot_be_used_are_named(
    store: Database,
    authorities: tuple[Authority, Authority],
    server_files: tuple[Path, Path],
    tmp_path: Path,
    what: str,
) -> None:
    """A file of nonsense between the right lines is refused at the start, and the message names it."""
    (tmp_path / "bad.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    (tmp_path / "tokens.toml").write_text("")
    files = {
        "certificate": str(server_files[0]),
        "key": str(server_files[1]),
        "client_ca": str(authorities[0].file),
        what: str(tmp_path / "bad.pem"),
    }
    auth = AuthSettings(tokens=str(tmp_path / "tokens.toml"))
    with (
        pytest.raises(InvalidArgument, match=r"tls.*bad\.pem"),
        serving_node(store, tls=TLSSettings(**files), auth=auth),
    ):
        pass


def test_the_doctor_counts_the_days_of_certificates(tmp_path: Path) -> None:
    """Those that are served, believed and shown to others, each by its option; one that ends tomorrow is too old."""
    authority = Authority(tmp_path / "authority")
    (certificate, key), (shown, shown_key) = authority.issue("server", LOCAL), authority.issue("store")
    (tmp_path / "tokens.toml").write_text(entry_text("anyone", "secret", [Grant("admin")]))
    replication = ReplicationSettings(certificate=str(shown), key=str(shown_key), ca=str(tmp_path / "absent.pem"))
    tls = TLSSettings(certificate=str(certificate), key=str(key), client_ca=str(authority.file))
    auth = AuthSettings(tokens=str(tmp_path / "tokens.toml"))
    with (
        vecstore.open(str(tmp_path / "store")) as database,
        serving_node(database, tls=tls, auth=auth, replication=replication) as served,
    ):
        done, text = served.replication.commands.run("doctor", b"{}")
    (check,) = (check for check in json.loads(text)["checks"] if check["name"] == "certificates")
    assert done and check["state"] == "warn"
    for part in (
        "tls.certificate: 1 days",
        "tls.client_ca: 1 days",
        "replication.certificate: 1 days",
        "absent.pem cannot be read",
    ):
        assert part in check["found"]
