"""Who calls: static tokens, JSON Web Tokens and client certificates, each with its grants.

As soon as any of them is configured nobody gets in without. Secrets are random and long, so their file holds plain
SHA-256 digests; they are compared in constant time. A verified token is remembered by its digest, until it expires or
the files are read again, so that a call costs one hash and one look-up. Files are read at the start and on `reload`;
one that cannot be used leaves everything as it was, and the error says why.

JWTs: RS256 and Ed25519 (EdDSA), nothing else, whatever their header says; issuer, audience, expiry and subject must be
there. Keys come from a file, never from the network and never from the token.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import tomllib
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from ..clock import Clock
from ..errors import InvalidArgument, Unauthenticated
from .caller import Caller, Grant, Role

__all__ = [
    "AuthSettings",
    "Authenticator",
    "GrantEntry",
    "TokenEntry",
    "digest_of",
    "entry_text",
    "names_in",
    "new_secret",
]

REMEMBERED_TOKENS_MAX = 10_000
TOKEN_BYTES_MAX = 8_192
RSA_BITS_MIN = 2_048
_PEM_KEY = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.+?-----END \1-----", re.DOTALL)
_UNKNOWN = "token: not one that this server knows"
_HINT = "send `authorization: Bearer TOKEN`; clients take it as token=, --token-file or VECSTORE_TOKEN"


class AuthSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who may call. The files are read again on SIGHUP. With none of them everybody may do everything.

    Attributes
    ----------
    tokens
        File of tokens and of certificates' names with their grants, TOML; `vecstore token` makes entries.
    jwt_keys
        File of the public keys that sign JWTs: PEM, or a JSON Web Key Set.
    jwt_issuer
        The issuer that a JWT must name.
    jwt_audience
        The audience that a JWT must name.
    jwt_claim
        The claim that holds the grants: a list of objects with `role` and `collections`, as in the file of tokens.
    jwt_leeway_s
        By so many seconds the issuer's clock may be off.
    """

    tokens: str = ""
    jwt_keys: str = ""
    jwt_issuer: str = ""
    jwt_audience: str = ""
    jwt_claim: str = "vecstore"
    jwt_leeway_s: Annotated[float, Meta(ge=0, le=600)] = 5.0


class GrantEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A grant as files and claims write it; `collections` are names, or "*" for all and for the store itself."""

    role: Role
    collections: list[Annotated[str, Meta(min_length=1)]] | Literal["*"]

    def grant(self) -> Grant:
        """Return it as the server uses it."""
        return Grant(self.role, None if self.collections == "*" else frozenset(self.collections))


class TokenEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A token in the file: a name for logs, the digest of the secret in hexadecimal, and what it may."""

    name: Annotated[str, Meta(min_length=1, max_length=255)]
    sha256: Annotated[str, Meta(pattern="^[0-9a-fA-F]{64}$")]
    grants: list[GrantEntry]


class _CertificateEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    subject: Annotated[str, Meta(min_length=1)]
    grants: list[GrantEntry]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    token: list[TokenEntry] = []
    certificate: list[_CertificateEntry] = []


class _Claims(msgspec.Struct, frozen=True):
    sub: Annotated[str, Meta(min_length=1, max_length=255)]
    exp: float
    nbf: float = -inf


class _Key(NamedTuple):
    algorithm: str
    name: str | None
    key: Any


class _Known(NamedTuple):
    """All that the files said, and whom it was used for: replaced as a whole."""

    tokens: tuple[tuple[bytes, Caller], ...]
    certificates: dict[str, Caller]
    keys: tuple[_Key, ...]
    remembered: dict[bytes, tuple[Caller, float]]


def new_secret() -> str:
    """Return a random token of 256 bits; the prefix tells scanners of leaked secrets what it is."""
    return f"vecstore_{secrets.token_urlsafe(32)}"


def entry_text(name: str, secret: str, grants: Sequence[Grant]) -> str:
    """Return the entry of a token as the file of tokens has it."""
    forms = []
    for grant in grants:
        names = "*" if grant.collections is None else sorted(grant.collections)
        forms.append(f"{{ role = {json.dumps(grant.role)}, collections = {json.dumps(names)} }}")
    lines = ["[[token]]", f"name = {json.dumps(name)}", f"sha256 = {json.dumps(digest_of(secret))}"]
    return "\n".join([*lines, f"grants = [{', '.join(forms)}]"]) + "\n"


def digest_of(secret: str) -> str:
    """Return what the file of tokens holds of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Authenticator:
    """Says who a call is from. Thread-safe.

    Parameters
    ----------
    settings
        Which files.
    clock
        By its wall time tokens expire.
    with_certificates
        Whether clients must show certificates: then these alone may be enough, and nobody gets in without a grant.

    Raises
    ------
    InvalidArgument
        A file that cannot be used, or settings that leave out what belongs to them.
    """

    def __init__(self, settings: AuthSettings, clock: Clock, *, with_certificates: bool = False) -> None:
        if with_certificates and not (settings.tokens or settings.jwt_keys):
            raise InvalidArgument(
                "auth.tokens: clients must show certificates, and no file says what these allow",
                hint="add [[certificate]] entries to a file and name it as auth.tokens",
            )
        if settings.jwt_keys and not (settings.jwt_issuer and settings.jwt_audience):
            raise InvalidArgument("auth.jwt_keys: needs auth.jwt_issuer and auth.jwt_audience too")
        self._settings = settings
        self._clock = clock
        self._known = self._read()
        self.is_required = bool(settings.tokens or settings.jwt_keys or with_certificates)
        self.asks_certificates = with_certificates

    def reload(self) -> None:
        """Read the files again; what was granted before and is not in them any more is refused from the next call on.

        Raises
        ------
        InvalidArgument
            A file cannot be used; nothing has changed.
        """
        self._known = self._read()

    def _read(self) -> _Known:
        settings = self._settings
        file = _read_tokens(Path(settings.tokens)) if settings.tokens else _File()
        tokens = tuple((bytes.fromhex(one.sha256), Caller(one.name, _grants(one.grants))) for one in file.token)
        certificates = {one.subject: Caller(one.subject, _grants(one.grants)) for one in file.certificate}
        keys = _read_keys(Path(settings.jwt_keys)) if settings.jwt_keys else ()
        return _Known(tokens, certificates, keys, {})

    def known_by(self) -> list[Any]:
        """Return by what callers are known here and what they may, as plain values in an order of their own.

        Tokens that stores alone show each other are left out: each Region knows the other's. There is no secret in it,
        and it is nobody's business all the same.
        """
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        known = self._known
        found: list[Any] = [["token", digest.hex(), _plain(caller)] for digest, caller in known.tokens]
        found += [["certificate", subject, _plain(caller)] for subject, caller in known.certificates.items()]
        for key in known.keys:
            data = key.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            found.append(["key", data.hex(), [key.algorithm, key.name]])
        return sorted((one for one in found if one[2]), key=lambda one: one[:2])

    def by_token(self, authorization: str) -> Caller:
        """Return the caller that an `authorization` header belongs to.

        Raises
        ------
        Unauthenticated
            It is none that this server knows, or not any more.
        """
        known = self._known
        digest = hashlib.sha256(authorization.encode(errors="replace")).digest()
        found = known.remembered.get(digest)
        if found is None:
            found = self._verified(known, authorization)
            if len(known.remembered) >= REMEMBERED_TOKENS_MAX:
                known.remembered.clear()
            known.remembered[digest] = found
        caller, expiry_s = found
        if expiry_s != inf and self._clock.wall_us() / 1e6 >= expiry_s:
            known.remembered.pop(digest, None)
            raise Unauthenticated("token: has expired", hint="get a new one from its issuer")
        return caller

    def by_certificate(self, names: Sequence[str]) -> Caller:
        """Return the caller that the names of a client's certificate stand for: its common name, then the others.

        Raises
        ------
        Unauthenticated
            None of them has an entry.
        """
        certificates = self._known.certificates
        for name in names:
            if name in certificates:
                return certificates[name]
        raise Unauthenticated("certificate: none of its names has an entry in the server's file of tokens", hint=_HINT)

    def _verified(self, known: _Known, authorization: str) -> tuple[Caller, float]:
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("authorization: is not a bearer token", hint=_HINT)
        if len(token) > TOKEN_BYTES_MAX:
            raise Unauthenticated(f"token: longer than {TOKEN_BYTES_MAX} bytes")
        if known.keys and token.count(".") == 2:
            return self._from_jwt(known, token)
        digest = hashlib.sha256(token.encode(errors="replace")).digest()
        found = None
        for wanted, caller in known.tokens:
            # All are compared, each in constant time: how long it takes says nothing.
            if hmac.compare_digest(digest, wanted):
                found = caller
        if found is None:
            raise Unauthenticated(_UNKNOWN, hint=_HINT)
        return found, inf

    def _from_jwt(self, known: _Known, token: str) -> tuple[Caller, float]:
        import jwt

        settings = self._settings
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.InvalidTokenError, ValueError, TypeError, RecursionError) as exc:
            raise Unauthenticated(_UNKNOWN) from exc
        name = header.get("kid")
        # The header may choose among our keys; the key alone says which algorithm is allowed with it.
        fitting = [key for key in known.keys if name is None or key.name is None or key.name == name]
        for key in fitting:
            try:
                claims = jwt.decode(
                    token,
                    key.key,
                    algorithms=[key.algorithm],
                    audience=settings.jwt_audience,
                    issuer=settings.jwt_issuer,
                    # Times are checked below, by the injected clock.
                    options={
                        "require": ["exp", "iss", "aud", "sub"],
                        "verify_exp": False,
                        "verify_nbf": False,
                        "verify_iat": False,
                    },
                )
            except (jwt.InvalidAudienceError, jwt.InvalidIssuerError, jwt.MissingRequiredClaimError) as exc:
                raise Unauthenticated(f"token: {_reason(exc)}") from exc
            except (jwt.InvalidTokenError, ValueError, TypeError, RecursionError):
                continue
            return self._from_claims(claims)
        raise Unauthenticated(_UNKNOWN)

    def _from_claims(self, claims: dict[str, Any]) -> tuple[Caller, float]:
        settings = self._settings
        try:
            times = msgspec.convert(claims, _Claims)
            entries = msgspec.convert(claims.get(settings.jwt_claim, []), list[GrantEntry])
        except msgspec.ValidationError as exc:
            raise Unauthenticated(f"token: its claims are not as they should be: {exc}") from exc
        now_s = self._clock.wall_us() / 1e6
        # Written so that what is not a number fails too.
        if not now_s < times.exp + settings.jwt_leeway_s < inf:
            raise Unauthenticated("token: has expired", hint="get a new one from its issuer")
        if not now_s >= times.nbf - settings.jwt_leeway_s:
            raise Unauthenticated("token: is not valid yet")
        return Caller(times.sub, _grants(entries)), times.exp + settings.jwt_leeway_s


def _plain(caller: Caller) -> list[Any]:
    """Return a caller's grants on data."""
    grants = [grant for grant in caller.grants if grant.role != "replicate"]
    plain = [[grant.role, "*" if grant.collections is None else sorted(grant.collections)] for grant in grants]
    return sorted(plain, key=json.dumps)


def _reason(error: Exception) -> str:
    name = type(error).__name__
    if name == "MissingRequiredClaimError":
        return f"lacks the claim {getattr(error, 'claim', '')!r}"
    return "is for another audience" if name == "InvalidAudienceError" else "is from another issuer"


def _grants(entries: Sequence[GrantEntry]) -> tuple[Grant, ...]:
    return tuple(entry.grant() for entry in entries)


def _read_tokens(path: Path) -> _File:
    try:
        found = msgspec.convert(tomllib.loads(_read_bytes(path).decode()), _File)
    except (ValueError, msgspec.ValidationError) as exc:
        raise InvalidArgument(f"auth.tokens: {path}: {exc}") from exc
    for kind, names in (
        ("name", [one.name for one in found.token]),
        ("sha256", [one.sha256.lower() for one in found.token]),
        ("subject", [one.subject for one in found.certificate]),
    ):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InvalidArgument(f"auth.tokens: {path}: {kind} {twice[0]!r} is there twice")
    return found


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise InvalidArgument(f"{path}: cannot be read: {exc.strerror}") from exc


def _read_keys(path: Path) -> tuple[_Key, ...]:
    import jwt
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = _read_bytes(path)
    found: list[tuple[str | None, Any]]
    try:
        if data.lstrip()[:1] == b"{":
            found = [(key.key_id, key.key) for key in jwt.PyJWKSet.from_dict(json.loads(data)).keys]
        else:
            found = [(None, load_pem_public_key(block.group())) for block in _PEM_KEY.finditer(data)]
    except (ValueError, TypeError, KeyError, AttributeError, UnsupportedAlgorithm, jwt.PyJWTError) as exc:
        raise InvalidArgument(f"auth.jwt_keys: {path}: no public keys can be read from it: {exc}") from exc
    keys = []
    for name, key in found:
        if isinstance(key, Ed25519PublicKey):
            keys.append(_Key("EdDSA", name, key))
        elif isinstance(key, RSAPublicKey) and key.key_size >= RSA_BITS_MIN:
            keys.append(_Key("RS256", name, key))
        else:
            raise InvalidArgument(
                f"auth.jwt_keys: {path}: holds a {type(key).__name__}; allowed are public keys of Ed25519, and of RSA "
                f"with at least {RSA_BITS_MIN} bits"
            )
    if not keys:
        raise InvalidArgument(f"auth.jwt_keys: {path}: holds no public key")
    return tuple(keys)


def names_in(auth_context: Any) -> tuple[str, ...]:
    """Return the names in a client's verified certificate, as gRPC's authentication context has them."""
    context = auth_context or {}
    found = (*context.get(b"x509_common_name", ()), *context.get(b"x509_subject_alternative_name", ()))
    return tuple(name.decode(errors="replace") for name in found)
