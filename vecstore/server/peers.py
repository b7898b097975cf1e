"""The address book: where the other stores of the lineage were last reached. A hint only; what is signed is believed.

It is a small file in the store's folder, written whole, so that a store finds its primary and its standbys again after
a restart, also where its configuration names none of them. An address that this store has reached itself, or that a
store says of itself, beats what others say of it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping
from pathlib import Path

import msgspec

from ..client.endpoint import is_address

__all__ = ["PEERS_FILE", "AddressBook"]

PEERS_FILE = "peers.json"
"""In the store's folder."""
PEERS_MAX = 64


class _Entry(msgspec.Struct, frozen=True):
    """Where a store is, and whether that is hearsay."""

    address: str
    region: str = ""
    is_hearsay: bool = False


class AddressBook:
    """Addresses by store id. Thread-safe.

    Parameters
    ----------
    folder
        Of the store; None keeps it in memory alone.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = None if folder is None else folder / PEERS_FILE
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        if self._file is not None:
            # A file that cannot be read is as good as none: whoever is met is written down again.
            with contextlib.suppress(OSError, msgspec.DecodeError):
                self._entries = msgspec.json.decode(self._file.read_bytes(), type=dict[str, _Entry])

    def address(self, store_id: str) -> str:
        """Return ``host:port`` of a store, "" where it is not known."""
        entry = self._entries.get(store_id)
        return "" if entry is None else entry.address

    def region(self, store_id: str) -> str:
        """Return the region that a store has named as its own, "" where that is not known."""
        entry = self._entries.get(store_id)
        return "" if entry is None else entry.region

    def addresses(self) -> dict[str, str]:
        """Return all addresses by store id."""
        return {store_id: entry.address for store_id, entry in self._entries.items()}

    def learn(self, store_id: str, address: str, region: str = "") -> None:
        """Take what a store says of itself, or where it was reached."""
        if store_id and is_address(address):
            self._put({store_id: _Entry(address, region or self.region(store_id))})

    def hear(self, addresses: Mapping[str, str], me: str) -> None:
        """Take what a store says of others; it is believed of those of whom nothing better is known."""
        fresh = {}
        for store_id, address in list(addresses.items())[:PEERS_MAX]:
            known = self._entries.get(store_id)
            if store_id != me and is_address(address) and (known is None or known.is_hearsay):
                fresh[store_id] = _Entry(address, "" if known is None else known.region, is_hearsay=True)
        self._put(fresh)

    def _put(self, fresh: Mapping[str, _Entry]) -> None:
        with self._lock:
            changed = {**self._entries, **fresh}
            if changed == self._entries or len(changed) > PEERS_MAX:
                return
            self._entries = changed
            if self._file is not None:
                draft = self._file.with_suffix(".new")
                # Whoever cannot write it asks its configuration again after a restart.
                with contextlib.suppress(OSError):
                    draft.write_bytes(msgspec.json.encode(changed))
                    os.replace(draft, self._file)
