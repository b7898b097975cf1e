"""Giving the files of a snapshot or a clone their place in a history: another lineage, or the same one further on.

LSNs are kept. In a lineage of its own the chain is seeded with both lineages, so nobody can take the store for its
source; what the source was in the replication, its slots, its marks and its log stay behind. No engine has the store
open meanwhile; the caller makes it durable.
"""

from __future__ import annotations

import msgspec

from ..record import lineage_chain, log_key
from . import catalog
from .base import Family
from .catalog import Tip
from .rocks import RocksStore

__all__ = ["rebase"]


def rebase(
    store: RocksStore,
    secret: bytes,
    checkpoint: tuple[str, int, str] | None,
    *,
    in_place: bool = False,
    replication: bytes | None = None,
) -> Tip | None:
    """Cut the log at the applied LSN, keep the one checkpoint of it, and take on a lineage; return the new tip.

    Parameters
    ----------
    secret
        Lineage and secret, as they are kept.
    checkpoint
        The file of rows and indexes at the applied LSN: name, bytes, xxh3_128. None for a store without anything.
    in_place
        It is the same lineage: chain and marks stay.
    replication
        What it is in the replication from now on; None for a store that never had another.
    """
    meta = Family.META
    batch: list[tuple[Family, bytes, bytes | None]] = [
        (meta, catalog.LINEAGE, secret),
        (meta, catalog.REPLICATION, replication),
        (meta, catalog.HANDOVER, None),
    ]
    gone = [catalog.CHECKPOINT, catalog.SLOT] + ([] if in_place else [catalog.CHAIN])
    for prefix in gone:
        batch += [(meta, key, None) for key, _ in store.scan(meta, prefix, prefix[:-1] + b"0")]
    if checkpoint is None:
        store.write(batch)
        return None
    source, applied = store.get(meta, [catalog.LINEAGE, catalog.APPLIED])
    assert source is not None and applied is not None, "what stood still has a lineage and a tip"
    tip = Tip.decode(applied)
    if not in_place:
        chain = lineage_chain(secret[:16], source[:16], tip.lsn, tip.chain)
        tip = Tip(tip.lsn, tip.epoch, chain, tip.commit_time_us, tip.log_bytes)
    name, size, check = checkpoint
    entry = {
        "lsn": tip.lsn,
        "chain": tip.chain.hex(),
        "log_bytes": tip.log_bytes,
        "file": name,
        "size": size,
        "check": check,
    }
    batch.append((meta, catalog.APPLIED, tip.encode()))
    batch.append((meta, catalog.numbered(catalog.CHECKPOINT, tip.lsn), msgspec.json.encode(entry)))
    store.write(batch)
    store.delete_range(Family.LOG, log_key(0), log_key(tip.lsn + 1))
    store.flush()
    store.compact(Family.LOG)
    return tip
