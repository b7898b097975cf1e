"""Requests of the contract, built bare."""

from __future__ import annotations

import json
from typing import Any

import grpc
import numpy as np
import pytest

from vecstore import Collection, VecstoreError
from vecstore.record import IdKind, PointsBody, id_key
from vecstore.wire import status
from vecstore.wire.v1 import store_pb2 as pb

__all__ = ["ALL", "body", "failed", "upsert"]

ALL = pb.PayloadPart(all=True)


def body(ids: list[Any], vectors: Any, payloads: list[Any]) -> bytes:
    """Return the body of an upsert; payloads are bytes, or are written as JSON."""
    pieces = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in payloads]
    kind = IdKind.INT if isinstance(ids[0], int) else IdKind.STR
    keys = [id_key(id) for id in ids]
    return b"".join(PointsBody(kind, keys, pieces, np.asarray(vectors, np.float32)).encode())


def upsert(docs: Collection, ids: list[Any], vectors: Any, payloads: list[Any], **write: Any) -> pb.UpsertRequest:
    """Return the request of an upsert."""
    return pb.UpsertRequest(write=pb.Write(**write), collection=docs.number, body=body(ids, vectors, payloads))


def failed(call: Any) -> VecstoreError:
    """Return the error that a call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return status.error_from(caught.value)
