"""Where this store is in the history: tokens, and whether the history holds the record of one."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

from ..config import TOKEN_CHAIN_BYTES
from ..errors import WriteLost
from ..record import Record, Token, log_key
from ..storage.base import Family, KeyValueStore
from ..storage.catalog import Epoch

__all__ = ["History"]

_RECENT = 4_096


class History:
    """The chain of recent records in memory, of older ones in the log, and the epochs. Thread-safe."""

    def __init__(self, store: KeyValueStore, lineage: bytes, epochs: list[Epoch]) -> None:
        self._store = store
        self.lineage = lineage
        self._epochs = epochs
        self._lock = Lock()
        self._recent: OrderedDict[int, bytes] = OrderedDict()

    def append(self, record: Record) -> None:
        """Remember the chain after a record."""
        with self._lock:
            self._recent[record.lsn] = record.mark.chain[:TOKEN_CHAIN_BYTES]
            if len(self._recent) > _RECENT:
                self._recent.popitem(last=False)

    def token(self, epoch: int, lsn: int, chain: bytes) -> str:
        """Return the token of a record."""
        return Token(self.lineage, epoch, lsn, chain).encode()

    @property
    def newest(self) -> int:
        """LSN of the newest record that was remembered, 0 for none."""
        return next(reversed(self._recent), 0)

    def chain_at(self, lsn: int) -> bytes | None:
        """Return the first bytes of the chain after a record, None where neither memory nor the log holds it."""
        return self._recent.get(lsn) or self._from_log(lsn)

    def token_at(self, lsn: int) -> str:
        """Return the token of the record at an LSN, "" where neither memory nor the log holds it."""
        held = self.chain_at(lsn)
        return "" if held is None else Token(self.lineage, self._epoch_at(lsn), lsn, held).encode()

    def check(self, token: Token, tip_lsn: int) -> bool:
        """Return whether the history holds a token's record; False where it has not come to its LSN yet.

        Raises
        ------
        WriteLost
            Another record stands at that LSN, or the token is of another lineage.
        """
        if token.lineage != self.lineage:
            raise WriteLost(
                f"the token is of lineage {token.lineage.hex()}, this store is of {self.lineage.hex()}",
                hint="read from the store that gave the token, or read without `after=`",
                details={"lineage": self.lineage.hex()},
            )
        if token.lsn > tip_lsn:
            self._check_ended(token)
            return False
        held = self.chain_at(token.lsn)
        lost = held != token.chain if held is not None else self._epoch_at(token.lsn) != token.epoch
        if lost and token.lsn > 0:
            raise WriteLost(
                f"this history holds another record at LSN {token.lsn} than the token names",
                hint="a failover lost that write; look among the exported records, and read without `after=`",
                details={"lsn": token.lsn, "epoch": self._epoch_at(token.lsn), **self._fork_of(token)},
            )
        return True

    def _check_ended(self, token: Token) -> None:
        """Refuse a token whose epoch ended below its record: this history will never hold it."""
        fork = self._fork_of(token)
        if fork:
            raise WriteLost(
                f"epoch {token.epoch} ended at LSN {fork['fork_lsn']} in this history, the token names LSN {token.lsn}",
                hint="a failover lost that write; look among the exported records, and read without `after=`",
                details={"lsn": token.lsn, "epoch": token.epoch, **fork},
            )

    def _fork_of(self, token: Token) -> dict[str, int]:
        """Return where a token's epoch ended below its record in this history; nothing where it did not."""
        later = [epoch.fork_lsn for epoch in self._epochs if epoch.number > token.epoch]
        return {"fork_lsn": min(later)} if later and min(later) < token.lsn else {}

    def _from_log(self, lsn: int) -> bytes | None:
        pieces = [value for _, value in self._store.scan(Family.LOG, log_key(lsn), log_key(lsn + 1))]
        return Record.decode(b"".join(pieces)).mark.chain[:TOKEN_CHAIN_BYTES] if pieces else None

    def _epoch_at(self, lsn: int) -> int:
        return max((epoch.number for epoch in self._epochs if epoch.fork_lsn < lsn), default=0)
