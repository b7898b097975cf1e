"""The course of a call, driven by hand: no gRPC, no clock, no thread."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from vecstore import (
    Closed,
    DeadlineExceeded,
    InvalidArgument,
    NotPrimary,
    Overloaded,
    Unauthenticated,
    Unavailable,
    VecstoreError,
    Written,
)
from vecstore.client.call import BACKOFF_S_MAX, FRESH_S, SETTLE_S, UNSETTLED_MAX, Call, Session, Step
from vecstore.config import WRITE_TIMEOUT_S_MAX
from vecstore.record import Token

LINEAGE, OTHER = bytes(16), bytes([1] * 16)
ID = bytes(range(16))
THREE = ("a:1", "b:2", "c:3")


def session(*roles: str, now_s: float = 0.0, **options: Any) -> Session:
    """Return what a client knows of servers that said their roles at a time; "" for one that said nothing."""
    made = Session([f"{name}:1" for name in "abcdef"[: len(roles)]], random=Random(1), **options)
    for i, role in enumerate(roles):
        if role:
            made.described(i, role, int(now_s * 1e6) + 1_000_000_000, LINEAGE, now_s)
    # Where several claim it, the first is the one that calls go to.
    made.primary = roles.index("primary") if "primary" in roles else 0
    return made


def token(lsn: int, epoch: int = 1, lineage: bytes = LINEAGE) -> str:
    """Return the token of a record."""
    return Token(lineage, epoch, lsn, bytes(8)).encode()


def gone() -> Unavailable:
    """Return what gRPC says of a server that is not there."""
    return Unavailable("UNAVAILABLE: connection refused")


def failed(call: Call, step: Step, error: VecstoreError, now_s: float = 0.0, *, from_server: bool = True) -> None:
    """Tell a call that a step failed."""
    call.failed(step, error, from_server=from_server, now_s=now_s)


def ended(call: Call, step: Step, error: VecstoreError) -> None:
    """Tell a call that a step failed, and then that its time is over."""
    failed(call, step, error)
    call.step(100.0)


def asked(call: Call, errors: Sequence[tuple[VecstoreError, bool]]) -> list[int]:
    """Return whom a call asks while each answer is one of these errors; waits pass at once."""
    found, now_s = [], 0.0
    for error, from_server in errors:
        step = call.step(now_s)
        now_s += step.wait_s
        found.append(step.endpoint)
        failed(call, step, error, now_s, from_server=from_server)
    return found


# -- where a call goes -----------------------------------------------------------------------------------------------


def test_a_server_is_asked_who_it_is_first() -> None:
    """Nothing is sent to a server whose role and clock are not known; a minute later it is asked again."""
    known = session("")
    call = known.read(10.0)
    assert call.step(0.0).describe
    known.described(0, "primary", 5_000_000, LINEAGE, 0.0)
    assert not call.step(0.1).describe
    assert not known.read(200.0).step(FRESH_S - 1).describe
    assert known.read(200.0).step(FRESH_S).describe


@pytest.mark.parametrize(
    ("read_from", "expected"), [("primary", {1}), ("standby", {0, 2}), ("any", {0, 1, 2})], ids=str
)
def test_reads_go_where_they_are_to_be_answered(read_from: Any, expected: set[int]) -> None:
    """Reads go to the primary, or turn about among the standbys, or among all."""
    known = session("standby", "primary", "standby", read_from=read_from)
    assert {known.read(10.0).step(0.0).endpoint for _ in range(12)} == expected


@pytest.mark.parametrize("read_from", ["primary", "standby", "any"])
def test_writes_go_to_the_primary(read_from: Any) -> None:
    """Wherever reads go, writes go to the primary."""
    known = session("standby", "standby", "primary", read_from=read_from)
    assert known.write(10.0, ID).step(0.0).endpoint == 2


def test_not_primary_is_followed_among_the_endpoints_given() -> None:
    """The primary that an error names is asked next if it was given; a stranger never is."""
    known = session("primary", "", "")
    call = known.write(10.0, ID)
    failed(call, call.step(0.0), NotPrimary("moved", primary="C:1"))
    assert known.peers[2].address == "c:1"
    assert call.step(0.0) == Step(2, True, 0.0, 2.5, False)
    stranger = session("primary", "primary", "primary")
    call = stranger.write(10.0, ID)
    assert asked(call, [(NotPrimary("moved", primary="evil:1"), True)]) == [0]
    assert call.step(0.0).endpoint == 1


def test_another_endpoint_is_asked_at_once_and_all_again_after_a_wait() -> None:
    """After a failed connection the next is asked without a wait; once all failed, there is a growing wait."""
    known = session("primary", "primary", "primary")
    call = known.read(100.0)
    waits, now_s = [], 0.0
    for _ in range(30):
        step = call.step(now_s)
        waits.append(step.wait_s)
        now_s += step.wait_s
        failed(call, step, gone(), now_s, from_server=False)
    assert [wait for i, wait in enumerate(waits) if i % 3] == [0.0] * 20
    rounds = [wait for i, wait in enumerate(waits) if i and i % 3 == 0]
    assert all(0.5 * 0.05 * 2**i <= wait <= 0.05 * 2**i for i, wait in enumerate(rounds[:4]))
    assert all(0.5 * BACKOFF_S_MAX <= wait <= BACKOFF_S_MAX for wait in rounds[5:])


def test_one_endpoint_is_waited_for() -> None:
    """With one endpoint, a connection that failed is waited for until the deadline, and then the cause is told."""
    known = session("primary")
    call = known.read(10.0)
    first = call.step(0.0)
    assert not first.wait_for_ready
    failed(call, first, gone(), from_server=False)
    second = call.step(0.1)
    assert second.wait_for_ready
    assert second.describe, "who answers there may be another one now"
    with pytest.raises(Unavailable, match="connection refused"):
        failed(call, second, DeadlineExceeded("late"), 10.0, from_server=False)


def test_a_server_that_drains_is_left() -> None:
    """A server that closes is passed by for the next one; the only one is asked again."""
    for error in (Closed("draining"), Unavailable("the server is being stopped")):
        assert asked(session("primary", "primary").write(10.0, ID), [(error, True)] * 2) == [0, 1]
        call = session("primary").write(10.0, ID)
        failed(call, call.step(0.0), error)
        assert call.step(0.0).endpoint == 0
        with pytest.raises(Unavailable, match=str(error)) as caught:
            call.step(10.0)
        assert caught.value.outcome == "refused"


def test_what_a_server_refuses_is_not_asked_elsewhere() -> None:
    """Bad input, shedding after gRPC's retries, and a single server that takes no writes reach the caller at once."""
    for error in (InvalidArgument("k"), Overloaded("busy"), NotPrimary("standby")):
        known = session("primary") if isinstance(error, NotPrimary) else session("primary", "primary")
        call = known.write(10.0, ID)
        with pytest.raises(type(error)) as caught:
            failed(call, call.step(0.0), error)
        assert caught.value.outcome == "refused"


def test_a_store_that_is_broken_is_told_once_all_said_so() -> None:
    """`Unavailable` that a server itself says, and for good, is tried at the others, each once."""
    call = session("primary", "primary").write(10.0, ID)
    failed(call, call.step(0.0), Unavailable("the disk failed", retryable=False))
    step = call.step(0.0)
    assert step.endpoint == 1
    with pytest.raises(Unavailable, match="the disk failed"):
        failed(call, step, Unavailable("the disk failed", retryable=False))


def test_without_a_primary_the_search_goes_on_until_the_deadline() -> None:
    """During a promotion nobody is the primary: all are asked again, until one is or the time is over."""
    known = session("standby", "standby")
    call, now_s, described = known.write(5.0, ID), 0.0, 0
    while now_s < 4.0:
        step = call.step(now_s)
        now_s += step.wait_s + 0.01
        assert step.describe
        described += 1
        known.described(step.endpoint, "standby", 0, LINEAGE, now_s)
    assert 8 < described < 60
    with pytest.raises(NotPrimary, match="standby") as caught:
        call.step(5.0)
    assert caught.value.outcome == "refused"
    promoted = session("standby", "standby")
    call = promoted.write(5.0, ID)
    step = call.step(0.0)
    promoted.described(step.endpoint, "primary", 0, LINEAGE, step.wait_s)
    assert call.step(step.wait_s).endpoint == step.endpoint


def test_a_standby_alone_serves_no_reads_of_the_primary() -> None:
    """A client that reads from the primary is told where there is none, at once."""
    with pytest.raises(NotPrimary, match="read_from"):
        session("standby").read(10.0).step(0.0)
    assert session("standby", read_from="any").read(10.0).step(0.0).endpoint == 0


def test_servers_of_several_stores_are_refused() -> None:
    """Endpoints of different lineages would scatter writes over stores that have nothing to do with each other."""
    known = session("primary", "")
    with pytest.raises(InvalidArgument, match="lineage"):
        known.described(1, "primary", 0, OTHER, 0.0)
    alone = session("primary")
    alone.described(0, "primary", 0, OTHER, 0.0)
    assert alone.lineage == OTHER


# -- time ------------------------------------------------------------------------------------------------------------


def test_deadlines_are_the_calls_or_the_connections() -> None:
    """A call has its own timeout or the connection's; infinity is none; writes have five minutes at most."""
    known = session("primary", timeout_s=3.0)
    assert known.deadline_s(None, 100.0) == 103.0
    assert known.deadline_s(7, 100.0) == 107.0
    assert known.deadline_s(float("inf"), 100.0) is None
    assert known.write_deadline_s(None, 100.0) == 103.0
    assert known.write_deadline_s(9_999, 100.0) == known.write_deadline_s(float("inf"), 0.0) + 100.0
    assert known.write_deadline_s(9_999, 0.0) == WRITE_TIMEOUT_S_MAX
    with pytest.raises(InvalidArgument, match="timeout"):
        known.deadline_s(-1, 0.0)


def test_the_time_left_shrinks_and_ends() -> None:
    """Each step has what is left; when nothing is, the call ends, and a write that never left is refused."""
    call = session("primary").write(10.0, ID)
    assert call.step(4.0).timeout_s == 6.0
    with pytest.raises(DeadlineExceeded) as caught:
        call.step(10.0)
    assert caught.value.outcome == "refused"
    assert session("primary").read(None).step(1e9).timeout_s is None


def test_one_of_several_servers_that_hangs_leaves_time_for_the_others() -> None:
    """Asking who a server is takes a part of the time; where it does not answer, the next one is asked."""
    known = session("", "")
    call = known.read(9.0)
    step = call.step(0.0)
    assert (step.endpoint, step.timeout_s) == (0, 3.0)
    failed(call, step, DeadlineExceeded("late"), 3.0, from_server=False)
    assert call.step(3.0).endpoint == 1


def test_a_server_that_does_not_answer_is_left_for_others() -> None:
    """One call is lost to it; the next ones go elsewhere, and after a while it is asked whether it is there."""
    known = session("primary", "standby", read_from="any")
    call = known.read(9.0)
    step = call.step(0.0)
    silent = step.endpoint
    with pytest.raises(DeadlineExceeded):
        failed(call, step, DeadlineExceeded("late"), 9.0, from_server=False)
    for _ in range(4):
        step = known.read(19.0).step(10.0)
        assert (step.endpoint, step.describe) == (1 - silent, False)
    later = [known.read(39.0).step(30.0) for _ in range(2)]
    assert {(step.endpoint, step.describe) for step in later} == {(silent, True), (1 - silent, False)}
    known.described(silent, "primary", 0, LINEAGE, 31.0)
    assert {known.read(39.0).step(32.0).endpoint for _ in range(2)} == {0, 1}
    assert not any(known.read(39.0).step(32.0).describe for _ in range(2))


def test_a_write_carries_its_deadline_on_the_servers_clock() -> None:
    """The deadline is told by the clock of the server that is asked, whatever that clock says."""
    known = Session(["a:1", "b:1"])
    known.described(0, "primary", 1_000_000_000, LINEAGE, 50.0)
    known.described(1, "primary", 77_000_000, LINEAGE, 60.0)
    call = known.write(70.0, ID)
    assert call.not_after_us(0) == 1_020_000_000
    assert call.not_after_us(1) == 87_000_000


def test_a_clock_that_was_set_is_asked_again() -> None:
    """A server that calls a write late which is not had its clock set: it is asked once more, and only once."""
    known = session("primary")
    call = known.write(10.0, ID)
    failed(call, call.step(0.0), DeadlineExceeded("late"), 0.1)
    assert call.step(0.1).describe
    known.described(0, "primary", 99, LINEAGE, 0.2)
    with pytest.raises(DeadlineExceeded) as caught:
        failed(call, call.step(0.2), DeadlineExceeded("late"), 0.3)
    assert caught.value.outcome == "refused"


def test_streams_wait_out_what_is_shed() -> None:
    """Streams are not retried by gRPC: what is shed is begun again when it was told to."""
    call = session("primary").read(10.0, waits_out=True)
    failed(call, call.step(0.0), Overloaded("busy", retry_after_s=2.5))
    assert call.step(0.0).wait_s == 2.5
    failed(call, call.step(5.0), Overloaded("busy", retry_after_s=30.0))
    with pytest.raises(Overloaded, match="busy"):
        call.step(5.0)


# -- what became of a write ------------------------------------------------------------------------------------------


def test_a_write_whose_answer_did_not_come_is_unknown() -> None:
    """The error says so, carries the request id, and the client remembers until when it may still be done."""
    known = session("primary")
    call = known.write(10.0, ID)
    with pytest.raises(DeadlineExceeded) as caught:
        failed(call, call.step(0.0), DeadlineExceeded("late"), 10.0, from_server=False)
    assert caught.value.outcome == "unknown"
    assert caught.value.details["request_id"] == ID.hex()
    assert "wait" in caught.value.hint
    assert known.settles_in_s(ID.hex(), 4.0) == 6.0 + SETTLE_S
    assert known.settles_in_s(ID.hex(), 11.0) == 0.0
    assert known.settles_in_s("00", 4.0) == 0.0


def test_what_failed_on_the_way_stays_unknown_whatever_comes_after() -> None:
    """A refusal by a second server says nothing of a first attempt that may still arrive; bad input is bad at both."""
    for error, outcome in (
        (NotPrimary("no"), "unknown"),
        (Overloaded("busy"), "unknown"),
        (InvalidArgument("k"), "refused"),
    ):
        call = session("primary", "primary").write(10.0, ID)
        failed(call, call.step(0.0), gone(), from_server=False)
        step = call.step(0.0)
        with pytest.raises(VecstoreError) as caught:
            ended(call, step, error)
        assert caught.value.outcome == outcome


def test_a_write_that_never_left_is_refused() -> None:
    """Where not even the question who a server is was answered, nothing can have been written."""
    call = session("").write(10.0, ID)
    failed(call, call.step(0.0), gone(), from_server=False)
    with pytest.raises(Unavailable) as caught:
        call.step(10.0)
    assert caught.value.outcome == "refused"


def test_a_call_cut_off_by_its_own_client() -> None:
    """A write under way when its client is closed is unknown; a read is just closed."""
    assert session("primary").write(10.0, ID).cut(Closed("closed"), is_sent=True).outcome == "unknown"
    assert session("primary").write(10.0, ID).cut(Closed("closed"), is_sent=False).outcome == "refused"
    assert session("primary").read(10.0).cut(Closed("closed"), is_sent=True).outcome == "refused"


def test_only_so_many_unsettled_writes_are_remembered() -> None:
    """The oldest are forgotten beyond a bound."""
    known = session("primary")
    for i in range(UNSETTLED_MAX + 1):
        known.unsettled(i.to_bytes(16, "big"), 10.0)
    assert known.settles_in_s((0).to_bytes(16, "big").hex(), 0.0) == 0.0
    assert known.settles_in_s((1).to_bytes(16, "big").hex(), 0.0) == 10.0


# -- the place in the history ----------------------------------------------------------------------------------------


def test_the_highest_token_is_remembered() -> None:
    """Later records and epochs replace earlier ones, never the other way; another lineage replaces all."""
    known = session("primary")
    for seen, expected in (
        (token(5), token(5)),
        (token(3), token(5)),
        ("", token(5)),
        (token(2, epoch=2), token(2, epoch=2)),
        (token(9), token(2, epoch=2)),
        (token(1, lineage=OTHER), token(1, lineage=OTHER)),
    ):
        known.saw(seen)
        assert known.token == expected


def test_reads_send_the_highest_token_or_what_they_are_given() -> None:
    """A read sends what its caller gives, else what is remembered; text that is no token is refused."""
    known = session("primary")
    assert known.after(None) == ("", False)
    known.saw(token(5))
    assert known.after(None) == (token(5), False)
    assert known.after(token(3)) == (token(3), False)
    assert known.after(Written(3, 1, token(3), "durable")) == (token(3), False)
    assert known.after(Written(6, 1, "", "memory")) == (token(5), True)
    for bad in ("", "x", 5):
        with pytest.raises(InvalidArgument, match="token"):
            known.after(bad)  # type: ignore[arg-type]


def test_a_lost_token_is_forgotten() -> None:
    """The token whose record is gone is forgotten; that of another is not."""
    known = session("primary")
    known.saw(token(5))
    known.lost(token(3))
    assert known.token == token(5)
    known.lost(token(5))
    assert known.token == ""
    known.saw(token(2))
    assert known.token == token(2)


def test_a_call_that_got_on_has_its_time_anew() -> None:
    """A load that commits, or work that tells how far it is, goes on; a wait that its server asked for stays."""
    call = session("primary").write(10.0, ID, waits_out=True)
    step = call.step(0.0)
    call.renew(60.0)
    failed(call, step, Overloaded("busy", retry_after_s=3.0), 50.0)
    assert call.step(50.0) == Step(0, False, 3.0, 7.0, True)


def test_a_stream_that_is_ended_from_outside_leaves_what_was_sent_unknown() -> None:
    """A status without the server's own words says nothing of records that no answer came to, whatever its code."""
    for is_under_way, outcome in ((True, "unknown"), (False, "refused")):
        known = session("primary")
        call = known.write(10.0, ID)
        step = call.step(0.0)
        with pytest.raises(Unauthenticated) as ended:
            call.failed(step, Unauthenticated("gone"), from_server=False, now_s=0.0, is_under_way=is_under_way)
        assert ended.value.outcome == outcome
