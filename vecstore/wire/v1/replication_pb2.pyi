from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Envelope(_message.Message):
    __slots__ = ("introduction", "message", "records", "scrub", "end", "facts", "piece", "more", "check")
    INTRODUCTION_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    SCRUB_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    introduction: Introduction
    message: bytes
    records: _containers.RepeatedScalarFieldContainer[bytes]
    scrub: bytes
    end: LogEnd
    facts: bytes
    piece: bytes
    more: bool
    check: int
    def __init__(self, introduction: _Optional[_Union[Introduction, _Mapping]] = ..., message: _Optional[bytes] = ..., records: _Optional[_Iterable[bytes]] = ..., scrub: _Optional[bytes] = ..., end: _Optional[_Union[LogEnd, _Mapping]] = ..., facts: _Optional[bytes] = ..., piece: _Optional[bytes] = ..., more: bool = ..., check: _Optional[int] = ...) -> None: ...

class LogEnd(_message.Message):
    __slots__ = ("lsn", "log_bytes", "commit_time_us")
    LSN_FIELD_NUMBER: _ClassVar[int]
    LOG_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMMIT_TIME_US_FIELD_NUMBER: _ClassVar[int]
    lsn: int
    log_bytes: int
    commit_time_us: int
    def __init__(self, lsn: _Optional[int] = ..., log_bytes: _Optional[int] = ..., commit_time_us: _Optional[int] = ...) -> None: ...

class Introduction(_message.Message):
    __slots__ = ("store_id", "lineage", "region", "address", "addresses", "now_us", "version")
    class AddressesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    NOW_US_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    store_id: str
    lineage: bytes
    region: str
    address: str
    addresses: _containers.ScalarMap[str, str]
    now_us: int
    version: str
    def __init__(self, store_id: _Optional[str] = ..., lineage: _Optional[bytes] = ..., region: _Optional[str] = ..., address: _Optional[str] = ..., addresses: _Optional[_Mapping[str, str]] = ..., now_us: _Optional[int] = ..., version: _Optional[str] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("store_id", "slot", "region", "address", "check", "reads_format", "reads_kind")
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    READS_FORMAT_FIELD_NUMBER: _ClassVar[int]
    READS_KIND_FIELD_NUMBER: _ClassVar[int]
    store_id: str
    slot: str
    region: str
    address: str
    check: int
    reads_format: int
    reads_kind: int
    def __init__(self, store_id: _Optional[str] = ..., slot: _Optional[str] = ..., region: _Optional[str] = ..., address: _Optional[str] = ..., check: _Optional[int] = ..., reads_format: _Optional[int] = ..., reads_kind: _Optional[int] = ...) -> None: ...

class SnapshotTicket(_message.Message):
    __slots__ = ("id", "store_id", "lineage", "lsn", "chain", "claim", "files", "primary_address", "check")
    ID_FIELD_NUMBER: _ClassVar[int]
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CLAIM_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    PRIMARY_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    id: str
    store_id: str
    lineage: bytes
    lsn: int
    chain: bytes
    claim: bytes
    files: _containers.RepeatedCompositeFieldContainer[SnapshotFile]
    primary_address: str
    check: int
    def __init__(self, id: _Optional[str] = ..., store_id: _Optional[str] = ..., lineage: _Optional[bytes] = ..., lsn: _Optional[int] = ..., chain: _Optional[bytes] = ..., claim: _Optional[bytes] = ..., files: _Optional[_Iterable[_Union[SnapshotFile, _Mapping]]] = ..., primary_address: _Optional[str] = ..., check: _Optional[int] = ...) -> None: ...

class SnapshotFile(_message.Message):
    __slots__ = ("name", "size", "check")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    name: str
    size: int
    check: str
    def __init__(self, name: _Optional[str] = ..., size: _Optional[int] = ..., check: _Optional[str] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("id", "name", "offset")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    offset: int
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class FileChunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class CommandRequest(_message.Message):
    __slots__ = ("name", "options")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    options: bytes
    def __init__(self, name: _Optional[str] = ..., options: _Optional[bytes] = ...) -> None: ...

class CommandReply(_message.Message):
    __slots__ = ("done", "text")
    DONE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    done: bool
    text: str
    def __init__(self, done: bool = ..., text: _Optional[str] = ...) -> None: ...

class DescribeReplicationRequest(_message.Message):
    __slots__ = ("chains_at",)
    CHAINS_AT_FIELD_NUMBER: _ClassVar[int]
    chains_at: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, chains_at: _Optional[_Iterable[int]] = ...) -> None: ...

class DescribeReplicationReply(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: bytes
    def __init__(self, json: _Optional[bytes] = ...) -> None: ...

class RangesRequest(_message.Message):
    __slots__ = ("hold", "pin", "sum", "list")
    HOLD_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    hold: HoldRequest
    pin: PinRequest
    sum: SumRequest
    list: ListRequest
    def __init__(self, hold: _Optional[_Union[HoldRequest, _Mapping]] = ..., pin: _Optional[_Union[PinRequest, _Mapping]] = ..., sum: _Optional[_Union[SumRequest, _Mapping]] = ..., list: _Optional[_Union[ListRequest, _Mapping]] = ...) -> None: ...

class RangesReply(_message.Message):
    __slots__ = ("held", "pinned", "sum", "list")
    HELD_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    held: Held
    pinned: PinnedStore
    sum: RangeSum
    list: RangeList
    def __init__(self, held: _Optional[_Union[Held, _Mapping]] = ..., pinned: _Optional[_Union[PinnedStore, _Mapping]] = ..., sum: _Optional[_Union[RangeSum, _Mapping]] = ..., list: _Optional[_Union[RangeList, _Mapping]] = ...) -> None: ...

class HoldRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Held(_message.Message):
    __slots__ = ("lsn",)
    LSN_FIELD_NUMBER: _ClassVar[int]
    lsn: int
    def __init__(self, lsn: _Optional[int] = ...) -> None: ...

class PinRequest(_message.Message):
    __slots__ = ("lsn", "wait_s")
    LSN_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    lsn: int
    wait_s: float
    def __init__(self, lsn: _Optional[int] = ..., wait_s: _Optional[float] = ...) -> None: ...

class PinnedStore(_message.Message):
    __slots__ = ("store_id", "lineage", "lsn", "epoch", "chain", "collections")
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    store_id: str
    lineage: bytes
    lsn: int
    epoch: int
    chain: bytes
    collections: _containers.RepeatedCompositeFieldContainer[PinnedCollection]
    def __init__(self, store_id: _Optional[str] = ..., lineage: _Optional[bytes] = ..., lsn: _Optional[int] = ..., epoch: _Optional[int] = ..., chain: _Optional[bytes] = ..., collections: _Optional[_Iterable[_Union[PinnedCollection, _Mapping]]] = ...) -> None: ...

class PinnedCollection(_message.Message):
    __slots__ = ("number", "name", "definition", "digest", "points")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DEFINITION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    number: int
    name: str
    definition: bytes
    digest: bytes
    points: int
    def __init__(self, number: _Optional[int] = ..., name: _Optional[str] = ..., definition: _Optional[bytes] = ..., digest: _Optional[bytes] = ..., points: _Optional[int] = ...) -> None: ...

class SumRequest(_message.Message):
    __slots__ = ("first", "stop", "points_max")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    POINTS_MAX_FIELD_NUMBER: _ClassVar[int]
    first: bytes
    stop: bytes
    points_max: int
    def __init__(self, first: _Optional[bytes] = ..., stop: _Optional[bytes] = ..., points_max: _Optional[int] = ...) -> None: ...

class RangeSum(_message.Message):
    __slots__ = ("next_place", "points", "digest", "damaged", "damaged_count")
    NEXT_PLACE_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_COUNT_FIELD_NUMBER: _ClassVar[int]
    next_place: bytes
    points: int
    digest: bytes
    damaged: _containers.RepeatedCompositeFieldContainer[DamagedPoint]
    damaged_count: int
    def __init__(self, next_place: _Optional[bytes] = ..., points: _Optional[int] = ..., digest: _Optional[bytes] = ..., damaged: _Optional[_Iterable[_Union[DamagedPoint, _Mapping]]] = ..., damaged_count: _Optional[int] = ...) -> None: ...

class DamagedPoint(_message.Message):
    __slots__ = ("place", "why")
    PLACE_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    place: bytes
    why: str
    def __init__(self, place: _Optional[bytes] = ..., why: _Optional[str] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("first", "stop")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    first: bytes
    stop: bytes
    def __init__(self, first: _Optional[bytes] = ..., stop: _Optional[bytes] = ...) -> None: ...

class RangeList(_message.Message):
    __slots__ = ("next_place", "stamps")
    NEXT_PLACE_FIELD_NUMBER: _ClassVar[int]
    STAMPS_FIELD_NUMBER: _ClassVar[int]
    next_place: bytes
    stamps: _containers.RepeatedCompositeFieldContainer[Stamp]
    def __init__(self, next_place: _Optional[bytes] = ..., stamps: _Optional[_Iterable[_Union[Stamp, _Mapping]]] = ...) -> None: ...

class Stamp(_message.Message):
    __slots__ = ("place", "lsn", "check")
    PLACE_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    place: bytes
    lsn: int
    check: bytes
    def __init__(self, place: _Optional[bytes] = ..., lsn: _Optional[int] = ..., check: _Optional[bytes] = ...) -> None: ...
