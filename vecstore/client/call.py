"""What a client knows, and the course of one call: which endpoint next, with how much time, and what an error means.

Pure: no gRPC, no clock, no thread, no wait. Who drives a call (`remote`, `asynchronous`) asks `Call.step` what to do,
does it, and tells `Call.failed` or `Session.described` what came of it. Times are seconds of the driver's monotonic
clock. `Session` is shared by all calls of a client and is thread-safe; a `Call` belongs to one caller.

What is decided here:

- Writes go to the primary among the endpoints that were given, reads where `read_from` says; `NotPrimary` is followed
  only to an endpoint that was given.
- gRPC itself retries what it can (`channel`). Here another endpoint is asked after a connection failed, a server that
  drains or one that is not the primary, with back-off once all were asked, until the call's deadline.
- A write may be sent again because it carries a request id. It also carries its deadline on the server's clock, which
  `Describe` tells: an attempt that was held up and arrives late changes nothing.
- Where it is not known what became of a write, the error says so, and `Database.wait` of its request id settles it.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from ..config import WRITE_TIMEOUT_S_MAX
from ..errors import (
    Closed,
    Damaged,
    DeadlineExceeded,
    InvalidArgument,
    NotPrimary,
    Overloaded,
    Unavailable,
    VecstoreError,
)
from ..inputs import checked_timeout, shown
from ..record import Token
from ..values import Written

__all__ = [
    "SETTLE_POLL_S",
    "Call",
    "Peer",
    "ReadFrom",
    "Session",
    "Step",
    "Target",
    "checked_default_timeout",
    "checked_read_from",
]

ReadFrom = Literal["primary", "standby", "any"]
Target = ReadFrom
"""Where a call may go."""

FRESH_S = 60.0
"""For so long a server's role and clock are believed; then it is asked again."""
BACKOFF_S, BACKOFF_S_MAX = 0.05, 1.0
SILENT_S = 5.0
"""For so long a server that did not answer is left alone where another may answer as well."""
DESCRIBE_S_MIN = 1.0
"""Time that one of several servers has at least to say who it is."""
UNSETTLED_MAX = 1_024
"""Request ids of writes whose outcome was unknown that are remembered, so that `wait` knows when they are settled."""
SETTLE_POLL_S = 0.1
SETTLE_S = 0.25
"""A write that was started just before its deadline is done so long after it, or its server waits for it itself."""


def checked_read_from(read_from: object) -> ReadFrom:
    """Check where reads go."""
    if read_from not in ("primary", "standby", "any"):
        raise InvalidArgument(f"read_from: {shown(read_from)} given; allowed are 'primary', 'standby', 'any'")
    return read_from


def checked_default_timeout(timeout: object) -> float:
    """Check the timeout of a connection, which every call without one of its own has."""
    checked = checked_timeout(timeout)
    if checked is None or not 0 < checked < math.inf:
        raise InvalidArgument(f"timeout: {shown(timeout)} given; allowed is a number of seconds above 0")
    return checked


_AMBIGUOUS = (DeadlineExceeded, Unavailable, Damaged)
"""What gRPC itself says of a call that the server may have got all the same."""


@dataclass(slots=True)
class Peer:
    """What is known of the server at one endpoint.

    Attributes
    ----------
    role
        "primary" or "standby"; "" until it said so.
    offset_us
        Its wall clock less the client's monotonic one, in microseconds.
    learned_s
        When it said so.
    silent_s
        When a call to it ended without an answer, if it has said nothing since.
    """

    address: str
    role: str = ""
    offset_us: int = 0
    learned_s: float = -math.inf
    silent_s: float = -math.inf

    def is_silent(self, now_s: float) -> bool:
        """Whether others are better asked for the moment."""
        return now_s - self.silent_s < SILENT_S

    def is_fresh(self, now_s: float) -> bool:
        """Whether role and clock are believed."""
        return now_s - self.learned_s < FRESH_S

    def wall_us(self, at_s: float) -> int:
        """Return what its wall clock shows at a time of the client's monotonic clock."""
        return self.offset_us + int(at_s * 1e6)


@dataclass(frozen=True, slots=True)
class Step:
    """What a driver does next.

    Attributes
    ----------
    endpoint
        Whom to ask.
    describe
        Ask it who it is and what its clock says, instead of the call itself.
    wait_s
        Wait so long before.
    timeout_s
        Time that is left for it once the wait is over; None for no limit.
    wait_for_ready
        Wait for the connection instead of failing when there is none.
    """

    endpoint: int
    describe: bool
    wait_s: float
    timeout_s: float | None
    wait_for_ready: bool


class Session:
    """What one client knows: its servers, and its place in the history. Thread-safe.

    Parameters
    ----------
    endpoints
        Addresses, each once.
    timeout_s
        Of calls that have none of their own.
    random
        Spreads retries.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        read_from: ReadFrom = "primary",
        timeout_s: float = 10.0,
        random: Random | None = None,
    ) -> None:
        self.peers = [Peer(address) for address in endpoints]
        self.read_from = read_from
        self.timeout_s = timeout_s
        self.primary = 0
        self.lineage = b""
        self.random = random or Random()  # noqa: S311 - spreads retries, keeps no secret
        self._turn = 0
        self._lock = threading.Lock()
        self._token = ""
        self._place: Token | None = None
        self._unsettled: OrderedDict[str, float] = OrderedDict()

    # -- calls -------------------------------------------------------------------------------------------------------

    def deadline_s(self, timeout: object, now_s: float) -> float | None:
        """Return when a call ends whose caller gave this timeout: None is the connection's, infinity none."""
        checked = self.timeout_s if timeout is None else checked_timeout(timeout)
        assert checked is not None
        return now_s + checked if checked < math.inf else None

    def write_deadline_s(self, timeout: object, now_s: float) -> float:
        """Return when a write ends: like other calls, and after five minutes at most."""
        limit_s = now_s + WRITE_TIMEOUT_S_MAX
        asked_s = self.deadline_s(timeout, now_s)
        return limit_s if asked_s is None else min(asked_s, limit_s)

    def read(self, deadline_s: float | None, *, primary: bool = False, waits_out: bool = False) -> Call:
        """Begin a call that changes nothing."""
        target: Target = "primary" if primary else self.read_from
        if target == "primary":
            return Call(self, target, deadline_s, self.primary, waits_out=waits_out)
        self._turn = turn = (self._turn + 1) % len(self.peers)
        return Call(self, target, deadline_s, turn, waits_out=waits_out)

    def write(self, deadline_s: float, request_id: bytes, *, waits_out: bool = False) -> Call:
        """Begin a write."""
        return Call(self, "primary", deadline_s, self.primary, request_id, waits_out=waits_out)

    def described(self, endpoint: int, role: str, now_us: int, lineage: bytes, at_s: float) -> None:
        """Take in what a server said of itself in an answer that came at this time."""
        if self.lineage and lineage != self.lineage and len(self.peers) > 1:
            raise InvalidArgument(
                f"endpoints: {self.peers[endpoint].address} serves a store of lineage {lineage.hex()}, others serve "
                f"{self.lineage.hex()}; allowed are servers of one lineage",
                details={"endpoint": self.peers[endpoint].address},
            )
        self.lineage = lineage
        peer = self.peers[endpoint]
        # Its clock was read before the answer came, so a deadline told by it is never later than the caller's.
        peer.role, peer.offset_us, peer.learned_s = role, now_us - int(at_s * 1e6), at_s
        peer.silent_s = -math.inf
        if role == "primary":
            self.primary = endpoint

    def index_of(self, address: str | None) -> int | None:
        """Return the endpoint of an address, if it was given."""
        wanted = (address or "").lower()
        return next((i for i, peer in enumerate(self.peers) if peer.address == wanted), None)

    # -- the place in the history ------------------------------------------------------------------------------------

    @property
    def token(self) -> str:
        """The highest token that this client was given; "" for none."""
        return self._token

    def saw(self, token: str) -> None:
        """Take in the token of an answer."""
        if not token or token == self._token:
            return
        place = Token.decode(token)
        with self._lock:
            known = self._place
            if known is None or place.lineage != known.lineage or (place.epoch, place.lsn) > (known.epoch, known.lsn):
                self._token, self._place = token, place

    def after(self, given: str | Written | None) -> tuple[str, bool]:
        """Return the token that a read sends, and whether only the primary can be asked.

        What the caller gives goes before what the client remembers: it may be of a history that is gone, and then the
        caller is to know. A write that is not durable has no token; the primary has it applied all the same.
        """
        if given is None:
            return self._token, False
        text = given.token if isinstance(given, Written) else given
        if not text and isinstance(given, Written):
            return self._token, True
        Token.decode(text)
        return text, False

    def lost(self, token: str) -> None:
        """Forget the remembered token, if it is this one, whose record the history does not hold."""
        with self._lock:
            if token == self._token:
                self._token, self._place = "", None

    # -- writes that are not settled ---------------------------------------------------------------------------------

    def unsettled(self, request_id: bytes, settled_s: float) -> None:
        """Remember until when a write whose outcome is unknown may still be done."""
        with self._lock:
            self._unsettled[request_id.hex()] = settled_s
            if len(self._unsettled) > UNSETTLED_MAX:
                self._unsettled.popitem(last=False)

    def settles_in_s(self, request_id: str, now_s: float) -> float:
        """Return for how long a write may still be done: until then, that it is not there says nothing."""
        return max(0.0, self._unsettled.get(request_id, -math.inf) - now_s)


class Call:
    """The course of one call. Belongs to one caller.

    Parameters
    ----------
    target
        Where it may go.
    deadline_s
        When it ends; None for never.
    first
        The endpoint to begin with.
    request_id
        Of a write; None for what changes nothing.
    waits_out
        Whether what the server sheds is tried again here: gRPC does so by itself, but not for streams.
    """

    __slots__ = (
        "_ambiguous",
        "_asked",
        "_at",
        "_cause",
        "_clock_doubted",
        "_rounds",
        "_session",
        "_target",
        "_wait_s",
        "deadline_s",
        "request_id",
        "waits_out",
    )

    def __init__(
        self,
        session: Session,
        target: Target,
        deadline_s: float | None,
        first: int,
        request_id: bytes | None = None,
        *,
        waits_out: bool = False,
    ) -> None:
        self._session, self._target, self.deadline_s, self._at = session, target, deadline_s, first
        self.request_id, self.waits_out = request_id, waits_out
        self._asked: set[int] = set()
        self._rounds = 0
        self._wait_s = 0.0
        self._cause: VecstoreError | None = None
        self._ambiguous = False
        self._clock_doubted = False

    # -- what to do --------------------------------------------------------------------------------------------------

    def step(self, now_s: float) -> Step:
        """Return what to do now.

        Raises
        ------
        VecstoreError
            The time is over, or nothing that was given can answer this call.
        """
        peer = self._chosen(now_s)
        wait_s, self._wait_s = self._wait_s, 0.0
        left_s = None
        if self.deadline_s is not None:
            left_s = self.deadline_s - now_s - wait_s
            if left_s <= 0:
                raise self._final(self._late())
        # With one endpoint the connection is waited for, once it is known why there is none.
        count = len(self._session.peers)
        describe = not self._is_known(peer, now_s)
        if describe and left_s is not None and count > 1:
            # One that hangs leaves time for the others.
            left_s = min(left_s, max(DESCRIBE_S_MIN, left_s / (count + 1)))
        return Step(self._at, describe, wait_s, left_s, self._cause is not None and count == 1)

    def _chosen(self, now_s: float) -> Peer:
        """Return the server to ask: the first that has the role asked for, or whose role is not known."""
        peers = self._session.peers
        if self._target == "any" and any(not peer.is_silent(now_s) for peer in peers):
            while peers[self._at].is_silent(now_s):
                self._at = (self._at + 1) % len(peers)
        while True:
            peer = peers[self._at]
            if not self._is_known(peer, now_s) or self._target in ("any", peer.role):
                return peer
            self._not_wanted(peer)

    def _is_known(self, peer: Peer, now_s: float) -> bool:
        """Whether enough is known of a server: of one that may have any role, that it answers."""
        if peer.silent_s > -math.inf and len(self._session.peers) > 1:
            return False
        return self._target == "any" or peer.is_fresh(now_s)

    def not_after_us(self, endpoint: int) -> int:
        """Return the time on a server's clock after which it must not start this write."""
        assert self.deadline_s is not None
        return self._session.peers[endpoint].wall_us(self.deadline_s)

    def _not_wanted(self, peer: Peer) -> None:
        """Go on from a server that has another role than the call asks for."""
        if self._target == "primary":
            error: VecstoreError = NotPrimary(
                f"{peer.address} is a {peer.role}, not the primary",
                hint="name the primary among the endpoints, or read with read_from='any'",
            )
        else:
            error = Unavailable(
                f"{peer.address} is a {peer.role}, not a standby",
                hint="name a standby among the endpoints, or read with read_from='any'",
                retryable=False,
            )
        if self._pass_by(self._at, error, None):
            for each in self._session.peers:
                each.learned_s = -math.inf

    # -- what came of it ---------------------------------------------------------------------------------------------

    def failed(
        self, step: Step, error: VecstoreError, *, from_server: bool, now_s: float, is_under_way: bool = False
    ) -> None:
        """Take in the error of a step; return if there is more to be tried.

        Parameters
        ----------
        from_server
            Whether the server itself said so; else gRPC did, and the call may or may not have reached it.
        is_under_way
            Whether writes were sent that no answer came to: then only the server's own words say what became of them.

        Raises
        ------
        VecstoreError
            What the caller gets.
        """
        peer = self._session.peers[step.endpoint]
        is_refused = from_server and error.outcome == "refused"
        if not step.describe and not is_refused and (from_server or is_under_way or isinstance(error, _AMBIGUOUS)):
            self._ambiguous = True
        if isinstance(error, DeadlineExceeded) and not from_server:
            peer.silent_s = now_s
        if isinstance(error, DeadlineExceeded) and step.describe and self._has_time(now_s):
            self._pass_by(step.endpoint, Unavailable(f"{peer.address} did not answer in time"), None)
        elif isinstance(error, DeadlineExceeded):
            if not (from_server and is_refused and self._may_doubt_clock(now_s)):
                raise self._final(error if from_server else self._late())
            # Time is left here and not there: its clock was set since it was asked, or the answer came late.
            self._clock_doubted = True
            peer.learned_s = -math.inf
        elif isinstance(error, NotPrimary):
            peer.learned_s = -math.inf
            self._pass_by(step.endpoint, error, self._session.index_of(error.primary))
        elif isinstance(error, Closed) or (isinstance(error, Unavailable) and error.retryable):
            # It is gone, or stops, or has not yet recovered: it, or another, will do it.
            peer.learned_s = -math.inf
            self._pass_by(step.endpoint, error, None)
        elif isinstance(error, Overloaded) and self.waits_out:
            self._cause = error
            self._wait_s = error.retry_after_s
        elif isinstance(error, Unavailable) and from_server and len(self._asked) + 1 < len(self._session.peers):
            self._pass_by(step.endpoint, error, None)
        else:
            raise self._final(error)

    def _has_time(self, now_s: float) -> bool:
        return self.deadline_s is None or self.deadline_s - now_s > 0.01

    def _may_doubt_clock(self, now_s: float) -> bool:
        return self.request_id is not None and not self._clock_doubted and self._has_time(now_s)

    def _pass_by(self, endpoint: int, error: VecstoreError, follow: int | None) -> bool:
        """Turn to another endpoint; once all were asked wait, begin again, and return True."""
        self._cause = error
        self._asked.add(endpoint)
        count = len(self._session.peers)
        if count == 1 and isinstance(error, NotPrimary | Unavailable) and not error.retryable:
            raise self._final(error)
        if follow is not None and follow not in self._asked:
            self._at = follow
            return False
        others = [i for i in range(endpoint + 1, endpoint + count) if i % count not in self._asked]
        if others:
            self._at = others[0] % count
            return False
        self._asked.clear()
        self._at = (endpoint + 1) % count
        backoff_s: float = min(BACKOFF_S_MAX, BACKOFF_S * 2.0**self._rounds)
        self._wait_s = backoff_s * self._session.random.uniform(0.5, 1.0)
        self._rounds += 1
        return True

    # -- what the caller gets ----------------------------------------------------------------------------------------

    def _late(self) -> VecstoreError:
        if self._cause is not None:
            why = f"{type(self._cause).__name__}: {self._cause.args[0]}"
            kind = type(self._cause) if isinstance(self._cause, NotPrimary | Overloaded) else Unavailable
            return kind(
                f"no endpoint could do it in the time given; the last said {why}", details={**self._cause.details}
            )
        return DeadlineExceeded("the time given ran out before the answer came", hint="give it more time")

    def _final(self, error: VecstoreError) -> VecstoreError:
        """Return an error as the caller gets it: with what became of a write."""
        if self.request_id is None or error.outcome == "durable":
            return error
        if self._ambiguous and not isinstance(error, InvalidArgument):
            error.outcome = "unknown"
        if error.outcome == "unknown":
            error.details["request_id"] = self.request_id.hex()
            # What `wait` takes has one name, embedded and here. A server that knows the record has put that one's token
            # there; the request's id says the same, of another attempt and after a failover too.
            error.details["token"] = self.request_id.hex()
            error.hint = "ask with Database.wait(details['token']) what became of it"
            assert self.deadline_s is not None
            self._session.unsettled(self.request_id, self.deadline_s + SETTLE_S)
        return error

    def renew(self, deadline_s: float) -> None:
        """Begin to count time and attempts anew, because the call got on; a wait that was asked for stays."""
        self.deadline_s = deadline_s
        self._rounds = 0
        self._clock_doubted = False

    def cut(self, error: VecstoreError, *, is_sent: bool) -> VecstoreError:
        """Return the error of a call that its own client cuts off; `is_sent` says whether a server may have it."""
        self._ambiguous = self._ambiguous or is_sent
        return self._final(error)
