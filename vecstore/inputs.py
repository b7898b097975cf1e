"""What callers give, checked and brought into the forms of the log and the wire. Pure; the same embedded and remote.

Every refusal names the field, the value and what is allowed.
"""

from __future__ import annotations

import functools
import math
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .config import (
    DIM_MAX,
    ID_BYTES_MAX,
    ID_INT_MAX,
    K_MAX,
    NAME_BYTES_MAX,
    RECALL_DEFAULT,
    RECORD_BYTES_MAX,
    RECORD_POINTS_MAX,
    SHARDS_MAX,
)
from .errors import InvalidArgument, VecstoreError
from .record import IdKind, id_key
from .values import Ack, Metric, Payload

__all__ = [
    "Ask",
    "ask_of",
    "checked_ack",
    "checked_dim",
    "checked_int",
    "checked_k",
    "checked_keys",
    "checked_metric",
    "checked_name",
    "checked_shards",
    "checked_threshold",
    "checked_timeout",
    "checked_vectors",
    "finite",
    "key_list",
    "last_of_each",
    "note_committed",
    "one_key",
    "payload_rows",
    "real_array",
    "shown",
    "too_large",
]

_NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{NAME_BYTES_MAX}}}")
_METRICS: tuple[Metric, ...] = ("cosine", "ip", "l2")


def shown(value: object) -> str:
    """Return a value as an error shows it: short."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def checked_name(name: object, what: str = "name") -> str:
    """Check the name of a collection."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidArgument(f"{what}: {shown(name)} is not a name; allowed is {_NAME.pattern}")
    return name


def checked_int(value: object, what: str, low: int, high: int) -> int:
    """Check a whole number."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= int(value) <= high:
        raise InvalidArgument(f"{what}: {shown(value)} given; allowed is a whole number from {low} to {high}")
    return int(value)


def checked_dim(dim: object) -> int:
    """Check a dimension."""
    return checked_int(dim, "dim", 1, DIM_MAX)


def checked_shards(shards: object) -> int:
    """Check a number of shards."""
    return checked_int(shards, "shards", 1, SHARDS_MAX)


def checked_metric(metric: object) -> Metric:
    """Check a metric."""
    if metric not in _METRICS:
        raise InvalidArgument(f"metric: {shown(metric)} given; allowed are {', '.join(_METRICS)}")
    return metric


def checked_ack(ack: object) -> Ack:
    """Check a level of acknowledgement; whether there is a synchronous standby, the store says."""
    if ack not in ("durable", "memory", "replicated"):
        raise InvalidArgument(f"ack: {shown(ack)} given; allowed are 'durable', 'memory', 'replicated'")
    return ack


def checked_timeout(timeout: object) -> float | None:
    """Check a timeout in seconds."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
        raise InvalidArgument(f"timeout: {shown(timeout)} given; allowed is a number of seconds from 0, or None")
    return float(timeout)


# -- ids -------------------------------------------------------------------------------------------------------------


def key_list(ids: Any) -> tuple[IdKind | None, list[bytes], bool]:
    """Return the kind of ids (None for none), their id keys, and whether one id was given instead of a sequence."""
    if isinstance(ids, int | str | uuid.UUID | np.integer) and not isinstance(ids, bool):
        kind, key = _key(ids, "ids")
        return kind, [key], True
    if isinstance(ids, np.ndarray):
        return _array_keys(ids)
    if hasattr(ids, "to_pylist"):
        ids = ids.to_pylist()
    if isinstance(ids, bytes | Mapping) or not isinstance(ids, Sequence):
        raise InvalidArgument(f"ids: {shown(ids)} given; allowed are an id or a sequence of ids (int or str)")
    if ids and type(ids[0]) is int and set(map(type, ids)) == {int}:
        try:
            return _array_keys(np.array(ids, np.int64))
        except OverflowError:
            pass
    pairs = [_key(id, f"ids[{i}]") for i, id in enumerate(ids)]
    kinds = {kind for kind, _ in pairs}
    if len(kinds) > 1:
        raise InvalidArgument("ids: integers and strings are mixed; the ids of one collection are of one kind")
    return (pairs[0][0] if pairs else None), [key for _, key in pairs], False


def _array_keys(ids: npt.NDArray[Any]) -> tuple[IdKind | None, list[bytes], bool]:
    if ids.ndim != 1:
        raise InvalidArgument(f"ids: an array of shape {ids.shape} given; allowed is one dimension")
    if ids.dtype.kind not in "iu":
        return key_list(ids.tolist())
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) > ID_INT_MAX):
        bad = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise InvalidArgument(f"ids: {bad} given; integer ids go from 0 to {ID_INT_MAX}")
    # Rows of nine bytes, made Python's own in one call.
    keys = np.empty(len(ids), "V9")
    rows = keys.view(np.uint8).reshape(-1, 9)
    rows[:, 0] = IdKind.INT
    rows[:, 1:] = ids.astype(">u8").view(np.uint8).reshape(-1, 8)
    return IdKind.INT, keys.tolist(), False


def _key(id: object, what: str) -> tuple[IdKind, bytes]:
    if isinstance(id, uuid.UUID):
        id = str(id)
    if isinstance(id, str):
        try:
            size = len(id.encode())
        except UnicodeEncodeError:
            raise InvalidArgument(f"{what}: {shown(id)} is not valid Unicode") from None
        if not 1 <= size <= ID_BYTES_MAX:
            raise InvalidArgument(
                f"{what}: {shown(id)} has {size} bytes; string ids have 1 to {ID_BYTES_MAX} bytes of UTF-8"
            )
        return IdKind.STR, id_key(id)
    if isinstance(id, int | np.integer) and not isinstance(id, bool | np.bool_):
        number = int(id)
        if not 0 <= number <= ID_INT_MAX:
            raise InvalidArgument(f"{what}: {number} given; integer ids go from 0 to {ID_INT_MAX}")
        return IdKind.INT, id_key(number)
    raise InvalidArgument(f"{what}: {shown(id)} given; an id is an int, a str or a uuid.UUID")


def one_key(id: object, what: str) -> tuple[IdKind, bytes]:
    """Return the kind and id key of one id."""
    return _key(id, what)


def last_of_each(keys: list[bytes]) -> list[int] | None:
    """Return the positions to keep so that the last of equal ids counts; None if all differ."""
    if len(set(keys)) == len(keys):
        return None
    return sorted({key: i for i, key in enumerate(keys)}.values())


# -- vectors ---------------------------------------------------------------------------------------------------------


def checked_vectors(
    vectors: npt.ArrayLike, dim: int, metric: Metric, what: str = "vectors", count: int | None = None
) -> npt.NDArray[np.float32]:
    """Return vectors as float32 (n, dim), C-contiguous.

    Parameters
    ----------
    count
        How many there must be; a single vector may be given flat where it is 1.
    """
    array = real_array(vectors, what)
    if array.ndim == 1 and (count == 1 or (count is None and array.size == dim)):
        array = array[None, :]
    if array.ndim == 2 and array.shape[0] == 0 and count in (None, 0):
        return np.empty((0, dim), np.float32)
    if array.size == 0 and count == 0:
        return np.empty((0, dim), np.float32)
    if array.ndim != 2:
        raise InvalidArgument(f"{what}: an array of shape {array.shape} given; allowed is (n, {dim})")
    if array.shape[1] != dim:
        raise InvalidArgument(f"{what}: dimension {array.shape[1]} given; the collection's is {dim}")
    if count is not None and len(array) != count:
        raise InvalidArgument(f"{what}: {len(array)} given for {count} ids; there must be one for each")
    return finite(array, metric, what)


def real_array(vectors: npt.ArrayLike, what: str) -> npt.NDArray[Any]:
    """Return what was given as an array of real numbers, of any shape."""
    try:
        array = np.asarray(vectors)
    except (ValueError, TypeError) as exc:
        raise InvalidArgument(f"{what}: {shown(vectors)} is not an array of numbers: {exc}") from exc
    if array.dtype.kind == "O" and array.size:
        raise InvalidArgument(f"{what}: {shown(vectors)} is of objects; allowed are real numbers of one length each")
    if array.dtype.kind not in "fiuO":
        raise InvalidArgument(f"{what}: {shown(vectors)} is of type {array.dtype}; allowed are real numbers")
    return array


def finite(array: npt.NDArray[Any], metric: Metric, what: str) -> npt.NDArray[np.float32]:
    """Return numbers (n, dim) as float32, of which each is finite and, under cosine, no row is all zeros."""
    with np.errstate(over="ignore"):
        floats = np.ascontiguousarray(array, np.float32)
    # A sum is finite only if every number is, and takes one pass; it may overflow on its own, so then look closely.
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not math.isfinite(float(np.add.reduce(floats, axis=None)))
    if suspicious and not np.isfinite(floats).all():
        row, column = np.argwhere(~np.isfinite(floats))[0].tolist()
        value = array[row, column]
        why = "is more than a float32 holds" if np.isfinite(value) else "is not a finite number"
        raise InvalidArgument(f"{what}[{row}][{column}]: {value!r} {why}; allowed are finite float32 numbers")
    if metric == "cosine":
        zero = ~floats.any(axis=1)
        if zero.any():
            row = int(np.flatnonzero(zero)[0])
            raise InvalidArgument(f"{what}[{row}]: a vector of zeros has no direction; under cosine it is not allowed")
    return floats


# -- search ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """How a caller asks for quality.

    Attributes
    ----------
    recall
        The share of the true nearest to expect.
    exact
        Compare every matching row.
    effort
        nprobe or efSearch, instead of a recall.
    """

    recall: float
    exact: bool = False
    effort: int | None = None


_default_ask = Ask(RECALL_DEFAULT)
_ask = functools.lru_cache(64)(Ask)


def checked_k(k: object, offset: object = 0) -> tuple[int, int]:
    """Check k and offset."""
    if type(k) is int and 1 <= k <= K_MAX and type(offset) is int and offset == 0:
        return k, 0
    k = checked_int(k, "k", 1, K_MAX)
    return k, checked_int(offset, "offset", 0, 2**31)


def ask_of(recall: Any, exact: bool, effort: int | None) -> Ask:
    """Return how a caller asks for quality; `recall`, `exact` and `effort` exclude each other."""
    if effort is None and not exact:
        if recall is None:
            return _default_ask
        if type(recall) is float and 0 < recall < 1:
            return _ask(recall)
    if (recall is not None) + bool(exact) + (effort is not None) > 1:
        raise InvalidArgument(
            f"recall, exact, effort: recall={recall!r}, exact={exact!r}, effort={effort!r} given; allowed is one"
        )
    if effort is not None:
        return Ask(RECALL_DEFAULT, effort=checked_int(effort, "effort", 1, 2**31 - 1))
    if recall is None:
        return Ask(1.0, exact=True)
    if isinstance(recall, bool) or not isinstance(recall, float | int | np.number) or not 0 < recall <= 1:
        raise InvalidArgument(f"recall: {shown(recall)} given; allowed is a number above 0, up to 1")
    return Ask(1.0, exact=True) if recall == 1 else _ask(float(recall))


def checked_threshold(score_threshold: Any) -> float | None:
    """Check a threshold of scores."""
    if score_threshold is None:
        return None
    if isinstance(score_threshold, bool) or not isinstance(score_threshold, int | float | np.number):
        raise InvalidArgument(f"score_threshold: {shown(score_threshold)} given; allowed is a number, or None")
    if math.isnan(score_threshold):
        raise InvalidArgument("score_threshold: nan given; allowed is a number, or None")
    return float(score_threshold)


def checked_keys(with_payload: Any) -> bool | tuple[str, ...]:
    """Check which payload keys are wanted."""
    if isinstance(with_payload, bool):
        return with_payload
    is_list = isinstance(with_payload, Sequence) and not isinstance(with_payload, str | bytes)
    if not is_list or not all(isinstance(key, str) for key in with_payload):
        raise InvalidArgument(f"with_payload: {shown(with_payload)} given; allowed are True, False, or a list of keys")
    return tuple(with_payload)


# -- payloads and records --------------------------------------------------------------------------------------------


def payload_rows(given: Any, count: int) -> Sequence[Payload] | None:
    """Return the payloads given, a sequence of mappings or a table, as mappings; None where none were given."""
    if given is None:
        return None
    rows = given
    if hasattr(given, "to_pylist"):
        # A table has a cell for every key; what is null there was not given.
        rows = [{key: value for key, value in row.items() if value is not None} for row in given.to_pylist()]
    if isinstance(rows, Mapping):
        rows = [rows]
    if isinstance(rows, str | bytes) or not isinstance(rows, Sequence):
        raise InvalidArgument(f"payloads: {shown(given)} given; allowed is a sequence of mappings, or a table")
    if len(rows) != count:
        raise InvalidArgument(f"payloads: {len(rows)} given for {count} ids; there must be one for each")
    return rows


def too_large(what: str, points: int, size: int) -> InvalidArgument:
    """Return the error for what does not fit one record, saying how to split it."""
    parts = max(-(-points // RECORD_POINTS_MAX), -(-size // RECORD_BYTES_MAX))
    return InvalidArgument(
        f"{what}: {points} points of {size} bytes are more than one record holds "
        f"({RECORD_POINTS_MAX} points, {RECORD_BYTES_MAX} bytes)",
        hint=f"split it into at least {parts} calls of {max(1, points // parts)} points"
        + (", or use upsert_table" if what == "upsert" else ""),
        details={"points": points, "bytes": size, "points_max": RECORD_POINTS_MAX, "bytes_max": RECORD_BYTES_MAX},
    )


def note_committed(exc: VecstoreError, committed: int) -> None:
    """Let the error of a call of many records say how many points the records before it committed."""
    exc.details["committed"] = committed
    exc.hint = f"{committed} points were committed before it" + (f"; {exc.hint}" if exc.hint else "")
