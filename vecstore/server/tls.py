"""The server's certificates: read from files, and read again when told to, without ending a connection.

What was read last serves the handshakes from then on. Files that cannot be used leave the old ones in force.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc

from ..errors import InvalidArgument
from .settings import TLSSettings

__all__ = ["Certificates", "end_of_authorities", "end_of_chain"]


class Certificates:
    """What the server shows, and whom it believes. Thread-safe.

    Raises
    ------
    InvalidArgument
        A file cannot be used, or the key belongs to another certificate; the message names it.
    """

    def __init__(self, settings: TLSSettings) -> None:
        for name in ("certificate", "key"):
            if not getattr(settings, name):
                raise InvalidArgument(f"tls.{name}: not given; a certificate and its key go together")
        self._settings = settings
        self.expiry_s = 0.0
        """When the certificate ends, in seconds since the Unix epoch."""
        self._latest = self._read()

    def reload(self) -> None:
        """Read the files again.

        Raises
        ------
        InvalidArgument
            They cannot be used; nothing has changed.
        """
        self._latest = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """Return what a server's port is opened with."""
        return grpc.dynamic_ssl_server_credentials(
            self._latest, lambda: self._latest, require_client_authentication=bool(self._settings.client_ca)
        )

    def _read(self) -> grpc.ServerCertificateConfiguration:
        settings = self._settings
        chain, key = _pem(settings.certificate, "certificate"), _pem(settings.key, "key")
        authorities = _pem(settings.client_ca, "client_ca") if settings.client_ca else None
        # gRPC takes anything and then refuses every connection: what is wrong is said beforehand.
        expiry_s = end_of_chain(settings.certificate, "tls.certificate", chain)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(settings.certificate, settings.key, password=lambda: "")
        except (ssl.SSLError, ValueError, OSError) as exc:
            raise InvalidArgument(
                f"tls.key: {settings.key} is not a key that can be used with {settings.certificate}: {exc}",
                hint="a PEM file without a password, of the same pair",
            ) from exc
        if authorities is not None:
            try:
                context.load_verify_locations(cadata=authorities.decode())
            except (ssl.SSLError, ValueError) as exc:
                raise InvalidArgument(
                    f"tls.client_ca: {settings.client_ca} holds no certificates that can be used: {exc}"
                ) from exc
        self.expiry_s = expiry_s
        return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=authorities)


def end_of_chain(file: str, option: str, data: bytes | None = None) -> float:
    """Return when a chain of certificates ends, in seconds since the Unix epoch: with the first of them that does.

    Raises
    ------
    InvalidArgument
        The file cannot be read, or holds none.
    """
    return min(_ends(file, option, data))


def end_of_authorities(file: str, option: str) -> float:
    """Return when the last of the authorities in a file ends: while one is being replaced there are two.

    Raises
    ------
    InvalidArgument
        The file cannot be read, or holds none.
    """
    return max(_ends(file, option, None))


def _ends(file: str, option: str, data: bytes | None) -> list[float]:
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificates(Path(file).read_bytes() if data is None else data)
    except OSError as exc:
        raise InvalidArgument(f"{option}: {file} cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise InvalidArgument(f"{option}: {file} holds no certificate: {exc}") from exc
    return [one.not_valid_after_utc.timestamp() for one in found]


def _pem(file: str, name: str) -> bytes:
    try:
        data = Path(file).read_bytes()
    except OSError as exc:
        raise InvalidArgument(f"tls.{name}: {file} cannot be read: {exc.strerror}") from exc
    if b"-----BEGIN " not in data:
        raise InvalidArgument(f"tls.{name}: {file} is not a PEM file")
    return data
