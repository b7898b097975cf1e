"""Messages and durable state as bytes: MessagePack of their structs, as docs/formats.md describes them.

A message is its name and its fields. Records of a frame travel beside it, each as it stands in the log, so that they
are neither copied into another form nor trusted to one.
"""

from __future__ import annotations

import typing

import msgspec

from ..errors import Damaged
from ..record import Record
from . import messages
from .durable import Durable, Slot
from .epochs import Claim
from .log import Place
from .messages import Frame, Message

__all__ = ["decode", "decode_claim", "decode_state", "encode", "encode_claim", "encode_state"]


class _Frame(msgspec.Struct, frozen=True):
    """A frame without its records."""

    session: int
    claim: Claim
    before: Place
    tip_lsn: int
    peers: tuple[str, ...]
    slots: tuple[Slot, ...]


_CLASSES: dict[str, type[msgspec.Struct]] = {
    **{cls.__name__: cls for cls in typing.get_args(messages.Message)},
    Frame.__name__: _Frame,
}


class _Named(msgspec.Struct, frozen=True, array_like=True):
    """A message on the wire: what it is, and its fields."""

    name: str
    fields: msgspec.Raw


def encode(message: Message) -> tuple[bytes, list[bytes]]:
    """Return a message's bytes, and those of the records that travel beside it."""
    records: list[bytes] = []
    bare: msgspec.Struct = message
    if isinstance(message, Frame):
        records = [record.encode() for record in message.records]
        bare = _Frame(message.session, message.claim, message.before, message.tip_lsn, message.peers, message.slots)
    fields = msgspec.Raw(msgspec.msgpack.encode(bare))
    return msgspec.msgpack.encode(_Named(type(message).__name__, fields)), records


def decode(data: bytes, records: typing.Sequence[bytes] = ()) -> Message:
    """Read a message.

    Raises
    ------
    Damaged
        It is none that this version knows, or a record in it is of a kind that this version does not know: standbys
        are brought to a new version first.
    """
    try:
        named = msgspec.msgpack.decode(data, type=_Named)
        cls = _CLASSES.get(named.name)
        if cls is None:
            raise Damaged(f"a message {named.name!r} came that this version does not know")
        message = msgspec.msgpack.decode(named.fields, type=cls)
    except msgspec.MsgspecError as exc:
        raise Damaged(f"a message of {len(data)} bytes cannot be read: {exc}") from exc
    if isinstance(message, _Frame):
        held = tuple(Record.decode(record) for record in records)
        return Frame(
            message.session, message.claim, message.before, held, message.tip_lsn, message.peers, message.slots
        )
    return typing.cast(Message, message)


def encode_state(state: Durable) -> bytes:
    """Return what a store must remember, as it is written to its families."""
    return msgspec.msgpack.encode(state)


def decode_state(data: bytes) -> Durable:
    """Read it; raises `Damaged` where it is not what was written."""
    try:
        return msgspec.msgpack.decode(data, type=Durable)
    except msgspec.MsgspecError as exc:
        raise Damaged(f"the replication state cannot be read: {exc}", details={"family": "meta"}) from exc


def encode_claim(claim: Claim) -> bytes:
    """Return a claim's bytes."""
    return msgspec.msgpack.encode(claim)


def decode_claim(data: bytes) -> Claim:
    """Read a claim; raises `Damaged` where it is none."""
    try:
        return msgspec.msgpack.decode(data, type=Claim)
    except msgspec.MsgspecError as exc:
        raise Damaged(f"a claim of {len(data)} bytes cannot be read: {exc}") from exc
