"""Messages and durable state survive the wire and the disk; what is no message is refused."""

from __future__ import annotations

import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecstore.errors import Damaged
from vecstore.record import NO_REQUEST, Header, Kind, Mark, Record, chain_seed, next_chain
from vecstore.replication import coding
from vecstore.replication.durable import Durable, RejoinState, Slot
from vecstore.replication.epochs import Claim, Identity, Standing
from vecstore.replication.log import Place
from vecstore.replication.messages import Frame, Message, Points, PointsRequest, Snapshot
from vecstore.storage.catalog import Epoch
from vecstore.storage.reads import Reads

IDENTITY = Identity(bytes(16), b"s" * 32, "me", "west")
LONG = st.integers(0, 2**64 - 1)
EPOCHS = st.builds(Epoch, LONG, st.text(max_size=9), LONG, st.text(max_size=9))
PLACES = st.builds(Place, LONG, st.binary(max_size=16))
SLOTS = st.builds(Slot, st.text(max_size=9), st.text(max_size=9), LONG, st.binary(max_size=16), st.booleans())
CLAIMS = st.builds(Claim.of, st.just(IDENTITY), EPOCHS)
STANDINGS = st.builds(
    Standing, st.binary(max_size=16), st.text(), st.text(), st.lists(EPOCHS).map(tuple), LONG, st.binary(max_size=16)
)


def records(count: int) -> tuple[Record, ...]:
    """Return records of a chain."""
    chain, made = chain_seed(bytes(16)), []
    for lsn in range(1, count + 1):
        header = Header(lsn, Kind.EPOCH, 1, NO_REQUEST, lsn, lsn, 0, 0, 0, 3)
        chain = next_chain(chain, header.encode(), (b"abc",))
        made.append(Record(header, (b"abc",), Mark(chain, 0, 0)))
    return tuple(made)


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Return values for a field's type."""
    known: dict[Any, st.SearchStrategy[Any]] = {
        int: LONG,
        str: st.text(max_size=9),
        bool: st.booleans(),
        Claim: CLAIMS,
        Standing: STANDINGS,
        Place: PLACES,
        Slot: SLOTS,
        Epoch: EPOCHS,
        Reads: st.builds(Reads, LONG, LONG),
        Any: st.dictionaries(st.text(max_size=5), st.integers(0, 9), max_size=3),
    }
    if annotation in known:
        return known[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if type(None) in arguments:
        return st.none() | values(next(a for a in arguments if a is not type(None)))
    if origin is tuple and arguments[0] is Record:
        return st.integers(0, 3).map(records)
    if origin is tuple and arguments[0] is Any:
        return st.lists(st.tuples(LONG, st.binary(max_size=9)).map(list), max_size=3).map(tuple)
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    assert origin is tuple, annotation
    return st.tuples(*map(values, arguments)) if arguments[-1] != (bytes | None) else st.tuples(LONG, st.none())


@pytest.mark.parametrize("cls", typing.get_args(Message), ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_every_message_survives(cls: type[msgspec.Struct], data: st.DataObject) -> None:
    """What is read is what was sent, records and signatures included."""
    hints = typing.get_type_hints(cls)
    message = cls(**{name: data.draw(values(hints[name]), name) for name in cls.__struct_fields__})
    sent, beside = coding.encode(message)  # type: ignore[arg-type]
    found = coding.decode(sent, beside)
    assert found == message
    for name in ("claim", "promise"):
        claim = getattr(found, name, None)
        assert claim is None or claim.is_valid(IDENTITY)


def test_a_record_that_was_changed_on_the_way_is_seen() -> None:
    """A flipped bit in a record's mark is refused at once, one in its body breaks the chain."""
    frame = Frame(1, Claim.of(IDENTITY, Epoch(1, "w", 0, "")), Place(0, chain_seed(bytes(16))), records(2), 2, (), ())
    sent, beside = coding.encode(frame)
    broken = bytearray(beside[0])
    broken[-40] ^= 1
    with pytest.raises(Damaged):
        coding.decode(sent, [bytes(broken), beside[1]])
    changed = bytearray(beside[0])
    changed[-57] ^= 1
    found = coding.decode(sent, [bytes(changed), beside[1]])
    assert isinstance(found, Frame) and not found.records[0].follows(0, chain_seed(bytes(16)))


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x92\xa5Hello\x80", b"\x92\xa5Other\x80", b"x" * 50])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    """Bytes of strangers end in an error of ours."""
    with pytest.raises(Damaged):
        coding.decode(data)


def test_the_durable_state_survives() -> None:
    """All of it, a rejoin included."""
    claim = Claim.of(IDENTITY, Epoch(3, "w", 7, "ab"))
    slot = Slot("s", "you", 5, b"c" * 16, True)
    state = Durable("standby", claim, "why", "you", ("you", "x"), (slot,), 2, 9, 1, RejoinState("reset", "you", 4, 5))
    assert coding.decode_state(coding.encode_state(state)) == state
    assert coding.decode_claim(coding.encode_claim(claim)) == claim
    for cls in (Snapshot, Points, PointsRequest):
        assert cls in typing.get_args(Message)
    with pytest.raises(Damaged):
        coding.decode_state(b"\xc1")
