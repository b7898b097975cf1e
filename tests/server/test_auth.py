"""Who a token is from: files, digests, JWTs that hold and JWTs that do not, and what is remembered."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
import tomllib
from math import inf
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

import vecstore
from tests.support.server import Wire, serving_node
from vecstore.cli.main import cli
from vecstore.errors import InvalidArgument, Unauthenticated
from vecstore.server.auth import REMEMBERED_TOKENS_MAX, Authenticator, AuthSettings, digest_of
from vecstore.server.caller import ANYONE, Caller, Grant
from vecstore.wire.v1 import store_pb2 as pb

NOW_S = 1_700_000_000
ED, OTHER_ED = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
RSA = generate_private_key(65537, 2048)
ISSUER, AUDIENCE = "https://issuer.example", "vecstore"


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now_s = float(NOW_S)

    def wall_us(self) -> int:
        """Return the time."""
        return int(self.now_s * 1e6)

    def monotonic_s(self) -> float:
        """Return the time."""
        return self.now_s


def pem(key: Any) -> bytes:
    """Return the public half of a key."""
    data: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return data


def claims(**more: Any) -> dict[str, Any]:
    """Return the claims of a token that holds; None removes one."""
    base = {
        "sub": "alice",
        "iss": ISSUER,
        "aud": AUDIENCE,
        "exp": NOW_S + 60,
        "vecstore": [{"role": "read", "collections": ["docs"]}],
    }
    return {name: value for name, value in {**base, **more}.items() if value is not None}


def signed(key: Any = ED, algorithm: str = "EdDSA", headers: dict[str, Any] | None = None, **more: Any) -> str:
    """Return an authorization header with a signed token."""
    return "Bearer " + jwt.encode(claims(**more), key, algorithm=algorithm, headers=headers)


@pytest.fixture
def clock() -> Clock:
    """Return a clock."""
    return Clock()


@pytest.fixture
def asked(tmp_path: Path, clock: Clock) -> Authenticator:
    """Return who knows a token, a certificate, and JWTs of two keys."""
    (tmp_path / "keys.pem").write_bytes(pem(ED) + pem(RSA))
    (tmp_path / "tokens.toml").write_text(
        f'[[token]]\nname = "reader"\nsha256 = "{digest_of("s3cret")}"\n'
        'grants = [{role = "read", collections = ["docs"]}]\n'
        '[[certificate]]\nsubject = "ingest.example"\ngrants = [{role = "write", collections = "*"}]\n'
    )
    return Authenticator(
        AuthSettings(
            tokens=str(tmp_path / "tokens.toml"),
            jwt_keys=str(tmp_path / "keys.pem"),
            jwt_issuer=ISSUER,
            jwt_audience=AUDIENCE,
        ),
        clock,
    )


# -- grants ------------------------------------------------------------------------------------------------------------


def test_a_role_includes_those_below_it() -> None:
    """Admin may write and read, write may read, replicate may neither; only on what the grant names."""
    caller = Caller("a", (Grant("admin", frozenset({"x"})), Grant("read"), Grant("write", frozenset({"y"}))))
    assert [caller.may(role, "x") for role in ("read", "write", "admin", "replicate")] == [True, True, True, False]
    assert [caller.may(role, "y") for role in ("read", "write", "admin")] == [True, True, False]
    assert [caller.may(role, "z") for role in ("read", "write", "admin")] == [True, False, False]
    assert [caller.may(role) for role in ("read", "write", "admin")] == [True, False, False]
    assert ANYONE.may("admin") and ANYONE.may("replicate")
    only_replica = Caller("r", (Grant("replicate"),))
    assert not only_replica.sees("x") and not only_replica.holds("read") and only_replica.may("replicate")


# -- static tokens -----------------------------------------------------------------------------------------------------


def test_a_token_of_the_file_is_known(asked: Authenticator) -> None:
    """The secret whose digest the file holds stands for its caller; the scheme's case does not matter."""
    for header in ("Bearer s3cret", "bearer s3cret", "BEARER  s3cret "):
        caller = asked.by_token(header)
        assert (caller.name, caller.may("read", "docs"), caller.may("read", "other")) == ("reader", True, False)


@pytest.mark.parametrize(
    "header",
    [
        *("", "Bearer", "Bearer ", "s3cret", "Basic s3cret", "Bearer s3cre", "Bearer S3CRET", "Bearer " + "x" * 10_000),
        *(f"Bearer {digest_of('s3cret')}", "Bearer a.b.c", "Bearer ..", "Bearer \udcff", "Bearer s3cret\x00"),
    ],
)
def test_what_is_no_token_is_refused(asked: Authenticator, header: str) -> None:
    """Neither a part of a secret, nor its digest, nor nonsense opens the door."""
    with pytest.raises(Unauthenticated):
        asked.by_token(header)


def test_certificates_are_known_by_their_names(asked: Authenticator) -> None:
    """The first name that has an entry counts; none is nobody."""
    assert asked.by_certificate(("other", "ingest.example")).may("write", "anything")
    with pytest.raises(Unauthenticated):
        asked.by_certificate(("ingest.example.org", ""))


@pytest.mark.parametrize(
    "text",
    [
        "not TOML [",
        '[[token]]\nname = "a"\n',
        '[[token]]\nname = "a"\nsha256 = "12"\ngrants = []\n',
        f'[[token]]\nname = "a"\nsha256 = "{"0" * 64}"\ngrants = [{{role = "root", collections = "*"}}]\n',
        f'[[token]]\nname = "a"\nsha256 = "{"0" * 64}"\ngrants = [{{role = "read"}}]\n',
        f'[[token]]\nname = "a"\nsha256 = "{"0" * 64}"\nsecret = "x"\ngrants = []\n',
        f'[[token]]\nname = "a"\nsha256 = "{"0" * 64}"\ngrants = []\n' * 2,
        "[tokens]\n",
    ],
)
def test_a_bad_file_is_refused_and_changes_nothing(asked: Authenticator, tmp_path: Path, text: str) -> None:
    """A file that cannot be used is named with what is wrong; on a reload the old one stays in force."""
    file = tmp_path / "tokens.toml"
    file.write_text(text)
    with pytest.raises(InvalidArgument, match=r"tokens\.toml"):
        Authenticator(AuthSettings(tokens=str(file)), Clock())
    with pytest.raises(InvalidArgument):
        asked.reload()
    assert asked.by_token("Bearer s3cret").name == "reader"


def test_a_reload_revokes_and_grants(asked: Authenticator, tmp_path: Path) -> None:
    """After a reload an old token is unknown although it was remembered, and a new one is known."""
    assert asked.by_token("Bearer s3cret").name == "reader"
    (tmp_path / "tokens.toml").write_text(
        f'[[token]]\nname = "new"\nsha256 = "{digest_of("other").upper()}"\ngrants = []\n'
    )
    asked.reload()
    with pytest.raises(Unauthenticated):
        asked.by_token("Bearer s3cret")
    assert asked.by_token("Bearer other").name == "new"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """No file is not an empty file: the server must not start open, nor closed for a typing error."""
    with pytest.raises(InvalidArgument, match="cannot be read"):
        Authenticator(AuthSettings(tokens=str(tmp_path / "none.toml")), Clock())


def test_once_anything_is_configured_everybody_is_asked(tmp_path: Path) -> None:
    """Without files nobody is asked; with certificates alone somebody has to say what they allow."""
    assert not Authenticator(AuthSettings(), Clock()).is_required
    with pytest.raises(InvalidArgument, match="certificates"):
        Authenticator(AuthSettings(), Clock(), with_certificates=True)
    (tmp_path / "empty.toml").write_text("")
    closed = Authenticator(AuthSettings(tokens=str(tmp_path / "empty.toml")), Clock())
    assert closed.is_required


# -- JSON Web Tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "algorithm"), [(ED, "EdDSA"), (RSA, "RS256")])
def test_a_token_of_a_known_key_holds(asked: Authenticator, key: Any, algorithm: str) -> None:
    """Both kinds of keys are known; subject and grants come from the claims."""
    caller = asked.by_token(signed(key, algorithm))
    assert (caller.name, caller.may("read", "docs"), caller.may("write", "docs")) == ("alice", True, False)
    assert asked.by_token(signed(vecstore=[{"role": "admin", "collections": "*"}])).may("admin")
    assert asked.by_token(signed(vecstore=None)).grants == ()
    assert asked.by_token(signed(aud=["other", AUDIENCE])).name == "alice"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"exp": NOW_S - 10}, "expired"),
        ({"exp": inf}, "token"),
        ({"exp": "tomorrow"}, "token"),
        ({"exp": None}, "exp"),
        ({"nbf": NOW_S + 100}, "not valid yet"),
        ({"aud": "another"}, "audience"),
        ({"aud": None}, "aud"),
        ({"iss": "https://issuer.example.evil"}, "issuer"),
        ({"iss": None}, "iss"),
        ({"sub": None}, "sub"),
        ({"sub": ""}, "token"),
        ({"vecstore": "admin"}, "claims"),
        ({"vecstore": [{"role": "root", "collections": "*"}]}, "claims"),
        ({"vecstore": [{"role": "read", "collections": ["docs"], "extra": 1}]}, "claims"),
    ],
)
def test_a_token_whose_claims_do_not_hold_is_refused(asked: Authenticator, more: dict[str, Any], words: str) -> None:
    """Expired, early, for others, from others, incomplete, or with grants that are none."""
    with pytest.raises(Unauthenticated, match=words):
        asked.by_token(signed(**more))


def part(value: object) -> str:
    """Return one part of a token."""
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
def test_a_token_with_a_forged_signature_is_refused(asked: Authenticator) -> None:
    """Without a signature, of another key, with our public key as a secret, of a cut or a mended token."""
    good = signed()
    head, body, signature = good.removeprefix("Bearer ").split(".")
    forged = [
        f"Bearer {part({'alg': 'none'})}.{part(claims())}.",
        f"Bearer {part({'alg': 'None', 'typ': 'JWT'})}.{part(claims())}.{signature}",
        signed(OTHER_ED),
        signed(OTHER_ED, headers={"jwk": {"kty": "OKP", "crv": "Ed25519"}, "jku": "http://127.0.0.1:1/keys"}),
        f"Bearer {head}.{part(claims(sub='mallory'))}.{signature}",
        f"Bearer {head}.{body}.",
        f"Bearer {head}.{body}.{signature[:-4]}",
        f"Bearer {part({'alg': 'RS256'})}.{body}.{signature}",
        f"Bearer {base64.urlsafe_b64encode(b'[' * 3_000).decode()}.{body}.{signature}",
        f"Bearer {part({'alg': ['EdDSA']})}.{body}.{signature}",
        f"Bearer {part([])}.{body}.{signature}",
        signed(RSA, "RS512"),
        signed(RSA, "PS256"),
    ]
    for secret in (pem(ED), pem(RSA), pem(ED).strip()):
        text = f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part(claims())}"
        mac = base64.urlsafe_b64encode(hmac.new(secret, text.encode(), hashlib.sha256).digest()).rstrip(b"=").decode()
        forged.append(f"Bearer {text}.{mac}")
    for header in forged:
        with pytest.raises(Unauthenticated, match="not one that this server knows"):
            asked.by_token(header)
    assert asked.by_token(good).name == "alice"


def test_a_remembered_token_still_expires(asked: Authenticator, clock: Clock) -> None:
    """What was verified once is refused from the moment it ends, within the leeway."""
    header = signed()
    assert asked.by_token(header).name == "alice"
    clock.now_s += 64
    assert asked.by_token(header).name == "alice"
    clock.now_s += 2
    for _ in range(2):
        with pytest.raises(Unauthenticated, match="expired"):
            asked.by_token(header)


def test_what_is_remembered_is_bounded(asked: Authenticator) -> None:
    """Many tokens of one issuer do not fill the memory."""
    caller = asked.by_token("Bearer s3cret")
    remembered = asked._known.remembered
    for i in range(REMEMBERED_TOKENS_MAX):
        remembered[i.to_bytes(4, "big")] = (caller, inf)
    asked.by_token(signed())
    assert len(asked._known.remembered) <= REMEMBERED_TOKENS_MAX


def test_tokens_are_looked_at_on_the_wire(tmp_path: Path) -> None:
    """A real server lets the good token in, and none that is expired, for others, from others, unsigned or forged."""
    (tmp_path / "keys.pem").write_bytes(pem(ED) + pem(RSA))
    settings = AuthSettings(jwt_keys=str(tmp_path / "keys.pem"), jwt_issuer=ISSUER, jwt_audience=AUDIENCE)
    now_s = int(time.time())
    soon: dict[str, Any] = {"exp": now_s + 60}
    good = [signed(**soon), signed(RSA, "RS256", **soon)]
    text = f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part(claims(**soon))}"
    mac = base64.urlsafe_b64encode(hmac.new(pem(ED), text.encode(), hashlib.sha256).digest()).rstrip(b"=").decode()
    bad = [
        signed(exp=now_s - 60),
        signed(**soon, aud="another"),
        signed(**soon, iss="another"),
        signed(OTHER_ED, **soon),
        f"Bearer {part({'alg': 'none'})}.{part(claims(**soon))}.",
        f"Bearer {text}.{mac}",
    ]
    codes = []
    with vecstore.open(str(tmp_path / "store")) as database, serving_node(database, auth=settings) as node:
        wire = Wire(node.grpc_address)
        for header in (*good, *bad, *good):
            try:
                wire("ListCollections", pb.ListCollectionsRequest(), metadata=(("authorization", header),))
                codes.append("OK")
            except grpc.RpcError as error:
                codes.append(error.code().name)
        wire.close()
    assert codes == ["OK", "OK", *["UNAUTHENTICATED"] * len(bad), "OK", "OK"]


def jwks(*keys: tuple[str | None, Any]) -> str:
    """Return a JSON Web Key Set."""
    found = []
    for name, key in keys:
        kind = jwt.algorithms.OKPAlgorithm if isinstance(key, Ed25519PrivateKey) else jwt.algorithms.RSAAlgorithm
        one: dict[str, Any] = kind.to_jwk(key.public_key(), as_dict=True)
        found.append({**one, **({"kid": name} if name else {})})
    return json.dumps({"keys": found})


def test_keys_of_a_set_are_found_by_name(tmp_path: Path, clock: Clock) -> None:
    """The header's key id chooses among keys; a known id does not make another key's signature hold."""
    file = tmp_path / "keys.json"
    file.write_text(jwks(("first", ED), ("second", RSA)))
    settings = AuthSettings(jwt_keys=str(file), jwt_issuer=ISSUER, jwt_audience=AUDIENCE)
    held = Authenticator(settings, clock)
    assert held.by_token(signed(headers={"kid": "first"})).name == "alice"
    assert held.by_token(signed(RSA, "RS256", {"kid": "second"})).name == "alice"
    assert held.by_token(signed()).name == "alice"
    for bad in (
        signed(headers={"kid": "second"}),
        signed(headers={"kid": "x"}),
        signed(OTHER_ED, "EdDSA", {"kid": "first"}),
    ):
        with pytest.raises(Unauthenticated):
            held.by_token(bad)
    # Keys are turned over: the old one is gone with the next reading.
    file.write_text(jwks(("third", OTHER_ED)))
    held.reload()
    assert held.by_token(signed(OTHER_ED, "EdDSA", {"kid": "third"})).name == "alice"
    with pytest.raises(Unauthenticated):
        held.by_token(signed(headers={"kid": "first"}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b'{"keys": []}',
        b'{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}',
        pem(generate_private_key(65537, 1024)),
        pem(ED).replace(b"MCo", b"xxx"),
        ED.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    ],
)
def test_keys_that_must_not_be_used_are_refused(tmp_path: Path, data: bytes) -> None:
    """No key, a shared secret, a short key, a broken one, a private one: the server does not start with it."""
    file = tmp_path / "keys"
    file.write_bytes(data)
    settings = AuthSettings(jwt_keys=str(file), jwt_issuer=ISSUER, jwt_audience=AUDIENCE)
    with pytest.raises(InvalidArgument, match=r"auth\.jwt_keys"):
        Authenticator(settings, Clock())


def test_keys_need_an_issuer_and_an_audience(tmp_path: Path) -> None:
    """A signature alone says too little: whom a token is from and for must be known."""
    (tmp_path / "keys.pem").write_bytes(pem(ED))
    for issuer, audience in (("", ""), (ISSUER, ""), ("", AUDIENCE)):
        settings = AuthSettings(jwt_keys=str(tmp_path / "keys.pem"), jwt_issuer=issuer, jwt_audience=audience)
        with pytest.raises(InvalidArgument, match="jwt_issuer"):
            Authenticator(settings, Clock())


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_makes_what_the_server_takes(tmp_path: Path) -> None:
    """The secret that `vecstore token` prints opens what its entry in the file grants, and the file keeps no secret."""
    file = tmp_path / "tokens.toml"
    first = CliRunner().invoke(cli, ["token", "a", "--role", "write", "--collection", "docs", "--add-to", str(file)])
    assert first.exit_code == 0, first.output
    more = CliRunner().invoke(cli, ["token", "b", "--add-to", str(file), "--json"])
    made = json.loads(more.stdout)
    held = Authenticator(AuthSettings(tokens=str(file)), Clock())
    caller = held.by_token(f"Bearer {first.stdout.strip()}")
    assert (caller.may("write", "docs"), caller.may("write", "x"), caller.may("admin", "docs")) == (True, False, False)
    assert held.by_token(f"Bearer {made['secret']}").may("read")
    text = file.read_text()
    assert first.stdout.strip() not in text and made["secret"] not in text
    assert [one["name"] for one in tomllib.loads(text)["token"]] == ["a", "b"]
    assert file.stat().st_mode & 0o077 == 0
    again = CliRunner().invoke(cli, ["token", "a", "--add-to", str(file)])
    assert again.exit_code == 1 and "already" in again.stderr and file.read_text() == text
    bad = CliRunner().invoke(cli, ["token", "c", "--collection", "a/b"])
    assert bad.exit_code == 1 and "collection" in bad.stderr
