from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Ack(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACK_DURABLE: _ClassVar[Ack]
    ACK_MEMORY: _ClassVar[Ack]
    ACK_REPLICATED: _ClassVar[Ack]
ACK_DURABLE: Ack
ACK_MEMORY: Ack
ACK_REPLICATED: Ack

class Blobs(_message.Message):
    __slots__ = ("sizes", "data")
    SIZES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    sizes: bytes
    data: bytes
    def __init__(self, sizes: _Optional[bytes] = ..., data: _Optional[bytes] = ...) -> None: ...

class Ids(_message.Message):
    __slots__ = ("ints", "strings")
    INTS_FIELD_NUMBER: _ClassVar[int]
    STRINGS_FIELD_NUMBER: _ClassVar[int]
    ints: bytes
    strings: Blobs
    def __init__(self, ints: _Optional[bytes] = ..., strings: _Optional[_Union[Blobs, _Mapping]] = ...) -> None: ...

class Floats(_message.Message):
    __slots__ = ("rows", "columns", "data")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    rows: int
    columns: int
    data: bytes
    def __init__(self, rows: _Optional[int] = ..., columns: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Points(_message.Message):
    __slots__ = ("ids", "payloads", "vectors")
    IDS_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    ids: Ids
    payloads: Blobs
    vectors: Floats
    def __init__(self, ids: _Optional[_Union[Ids, _Mapping]] = ..., payloads: _Optional[_Union[Blobs, _Mapping]] = ..., vectors: _Optional[_Union[Floats, _Mapping]] = ...) -> None: ...

class PayloadPart(_message.Message):
    __slots__ = ("all", "keys")
    ALL_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    all: bool
    keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, all: bool = ..., keys: _Optional[_Iterable[str]] = ...) -> None: ...

class Write(_message.Message):
    __slots__ = ("request_id", "not_after_us", "ack")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_US_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    not_after_us: int
    ack: Ack
    def __init__(self, request_id: _Optional[bytes] = ..., not_after_us: _Optional[int] = ..., ack: _Optional[_Union[Ack, str]] = ...) -> None: ...

class Written(_message.Message):
    __slots__ = ("epoch", "lsn", "count", "token", "ack")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    lsn: int
    count: int
    token: str
    ack: Ack
    def __init__(self, epoch: _Optional[int] = ..., lsn: _Optional[int] = ..., count: _Optional[int] = ..., token: _Optional[str] = ..., ack: _Optional[_Union[Ack, str]] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("type", "message", "hint", "retryable", "outcome", "details", "primary", "retry_after_s")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    PRIMARY_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    type: str
    message: str
    hint: str
    retryable: bool
    outcome: str
    details: bytes
    primary: str
    retry_after_s: float
    def __init__(self, type: _Optional[str] = ..., message: _Optional[str] = ..., hint: _Optional[str] = ..., retryable: bool = ..., outcome: _Optional[str] = ..., details: _Optional[bytes] = ..., primary: _Optional[str] = ..., retry_after_s: _Optional[float] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("epoch", "lsn", "lineage", "role", "region", "now_us", "version", "message_bytes_max")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    NOW_US_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    lsn: int
    lineage: bytes
    role: str
    region: str
    now_us: int
    version: str
    message_bytes_max: int
    def __init__(self, epoch: _Optional[int] = ..., lsn: _Optional[int] = ..., lineage: _Optional[bytes] = ..., role: _Optional[str] = ..., region: _Optional[str] = ..., now_us: _Optional[int] = ..., version: _Optional[str] = ..., message_bytes_max: _Optional[int] = ...) -> None: ...

class Collection(_message.Message):
    __slots__ = ("number", "name", "dim", "metric", "fields", "metadata", "id_kind")
    class FieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    ID_KIND_FIELD_NUMBER: _ClassVar[int]
    number: int
    name: str
    dim: int
    metric: str
    fields: _containers.ScalarMap[str, str]
    metadata: bytes
    id_kind: str
    def __init__(self, number: _Optional[int] = ..., name: _Optional[str] = ..., dim: _Optional[int] = ..., metric: _Optional[str] = ..., fields: _Optional[_Mapping[str, str]] = ..., metadata: _Optional[bytes] = ..., id_kind: _Optional[str] = ...) -> None: ...

class CollectionReply(_message.Message):
    __slots__ = ("epoch", "lsn", "collection")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    lsn: int
    collection: Collection
    def __init__(self, epoch: _Optional[int] = ..., lsn: _Optional[int] = ..., collection: _Optional[_Union[Collection, _Mapping]] = ...) -> None: ...

class CreateCollectionRequest(_message.Message):
    __slots__ = ("write", "name", "dim", "metric", "fields", "infer_fields", "index", "shards", "metadata", "exist_ok")
    class FieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    WRITE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    INFER_FIELDS_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    EXIST_OK_FIELD_NUMBER: _ClassVar[int]
    write: Write
    name: str
    dim: int
    metric: str
    fields: _containers.ScalarMap[str, str]
    infer_fields: bool
    index: str
    shards: int
    metadata: bytes
    exist_ok: bool
    def __init__(self, write: _Optional[_Union[Write, _Mapping]] = ..., name: _Optional[str] = ..., dim: _Optional[int] = ..., metric: _Optional[str] = ..., fields: _Optional[_Mapping[str, str]] = ..., infer_fields: bool = ..., index: _Optional[str] = ..., shards: _Optional[int] = ..., metadata: _Optional[bytes] = ..., exist_ok: bool = ...) -> None: ...

class GetCollectionRequest(_message.Message):
    __slots__ = ("name", "number", "after")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    name: str
    number: int
    after: str
    def __init__(self, name: _Optional[str] = ..., number: _Optional[int] = ..., after: _Optional[str] = ...) -> None: ...

class ListCollectionsRequest(_message.Message):
    __slots__ = ("after",)
    AFTER_FIELD_NUMBER: _ClassVar[int]
    after: str
    def __init__(self, after: _Optional[str] = ...) -> None: ...

class ListCollectionsReply(_message.Message):
    __slots__ = ("epoch", "lsn", "names")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    lsn: int
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, epoch: _Optional[int] = ..., lsn: _Optional[int] = ..., names: _Optional[_Iterable[str]] = ...) -> None: ...

class RenameCollectionRequest(_message.Message):
    __slots__ = ("write", "name", "to", "replace")
    WRITE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    write: Write
    name: str
    to: str
    replace: bool
    def __init__(self, write: _Optional[_Union[Write, _Mapping]] = ..., name: _Optional[str] = ..., to: _Optional[str] = ..., replace: bool = ...) -> None: ...

class DropCollectionRequest(_message.Message):
    __slots__ = ("write", "name", "missing_ok")
    WRITE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MISSING_OK_FIELD_NUMBER: _ClassVar[int]
    write: Write
    name: str
    missing_ok: bool
    def __init__(self, write: _Optional[_Union[Write, _Mapping]] = ..., name: _Optional[str] = ..., missing_ok: bool = ...) -> None: ...

class Done(_message.Message):
    __slots__ = ("epoch", "lsn")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    lsn: int
    def __init__(self, epoch: _Optional[int] = ..., lsn: _Optional[int] = ...) -> None: ...

class WaitRequest(_message.Message):
    __slots__ = ("token", "ack")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    token: str
    ack: Ack
    def __init__(self, token: _Optional[str] = ..., ack: _Optional[_Union[Ack, str]] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("epoch", "lsn", "status")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    lsn: int
    status: bytes
    def __init__(self, epoch: _Optional[int] = ..., lsn: _Optional[int] = ..., status: _Optional[bytes] = ...) -> None: ...

class VerifyRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class VerifyReply(_message.Message):
    __slots__ = ("done", "total", "report")
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    done: int
    total: int
    report: bytes
    def __init__(self, done: _Optional[int] = ..., total: _Optional[int] = ..., report: _Optional[bytes] = ...) -> None: ...

class SnapshotRequest(_message.Message):
    __slots__ = ("repository",)
    REPOSITORY_FIELD_NUMBER: _ClassVar[int]
    repository: str
    def __init__(self, repository: _Optional[str] = ...) -> None: ...

class SnapshotReply(_message.Message):
    __slots__ = ("id", "lsn", "time_us", "bytes_new")
    ID_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    TIME_US_FIELD_NUMBER: _ClassVar[int]
    BYTES_NEW_FIELD_NUMBER: _ClassVar[int]
    id: str
    lsn: int
    time_us: int
    bytes_new: int
    def __init__(self, id: _Optional[str] = ..., lsn: _Optional[int] = ..., time_us: _Optional[int] = ..., bytes_new: _Optional[int] = ...) -> None: ...

class UpsertRequest(_message.Message):
    __slots__ = ("write", "collection", "body", "timestamps")
    WRITE_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMPS_FIELD_NUMBER: _ClassVar[int]
    write: Write
    collection: int
    body: bytes
    timestamps: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, write: _Optional[_Union[Write, _Mapping]] = ..., collection: _Optional[int] = ..., body: _Optional[bytes] = ..., timestamps: _Optional[_Iterable[str]] = ...) -> None: ...

class UpdateRequest(_message.Message):
    __slots__ = ("write", "collection", "ids", "vectors", "payloads", "timestamps")
    WRITE_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMPS_FIELD_NUMBER: _ClassVar[int]
    write: Write
    collection: int
    ids: Ids
    vectors: Floats
    payloads: Blobs
    timestamps: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, write: _Optional[_Union[Write, _Mapping]] = ..., collection: _Optional[int] = ..., ids: _Optional[_Union[Ids, _Mapping]] = ..., vectors: _Optional[_Union[Floats, _Mapping]] = ..., payloads: _Optional[_Union[Blobs, _Mapping]] = ..., timestamps: _Optional[_Iterable[str]] = ...) -> None: ...

class DeleteRequest(_message.Message):
    __slots__ = ("write", "collection", "ids", "filter")
    WRITE_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    write: Write
    collection: int
    ids: Ids
    filter: bytes
    def __init__(self, write: _Optional[_Union[Write, _Mapping]] = ..., collection: _Optional[int] = ..., ids: _Optional[_Union[Ids, _Mapping]] = ..., filter: _Optional[bytes] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("collection", "vector", "k", "recall", "exact", "effort", "offset", "score_threshold", "payload", "with_vector", "filter", "after")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    EFFORT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SCORE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    WITH_VECTOR_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    collection: int
    vector: bytes
    k: int
    recall: float
    exact: bool
    effort: int
    offset: int
    score_threshold: float
    payload: PayloadPart
    with_vector: bool
    filter: bytes
    after: str
    def __init__(self, collection: _Optional[int] = ..., vector: _Optional[bytes] = ..., k: _Optional[int] = ..., recall: _Optional[float] = ..., exact: bool = ..., effort: _Optional[int] = ..., offset: _Optional[int] = ..., score_threshold: _Optional[float] = ..., payload: _Optional[_Union[PayloadPart, _Mapping]] = ..., with_vector: bool = ..., filter: _Optional[bytes] = ..., after: _Optional[str] = ...) -> None: ...

class SearchReply(_message.Message):
    __slots__ = ("epoch", "lsn", "exact", "points", "scores")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    lsn: int
    exact: bool
    points: Points
    scores: bytes
    def __init__(self, epoch: _Optional[int] = ..., lsn: _Optional[int] = ..., exact: bool = ..., points: _Optional[_Union[Points, _Mapping]] = ..., scores: _Optional[bytes] = ...) -> None: ...

class SearchBatchRequest(_message.Message):
    __slots__ = ("collection", "vectors", "k", "recall", "exact", "effort", "payload", "filter", "after")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    EFFORT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    collection: int
    vectors: Floats
    k: int
    recall: float
    exact: bool
    effort: int
    payload: PayloadPart
    filter: bytes
    after: str
    def __init__(self, collection: _Optional[int] = ..., vectors: _Optional[_Union[Floats, _Mapping]] = ..., k: _Optional[int] = ..., recall: _Optional[float] = ..., exact: bool = ..., effort: _Optional[int] = ..., payload: _Optional[_Union[PayloadPart, _Mapping]] = ..., filter: _Optional[bytes] = ..., after: _Optional[str] = ...) -> None: ...

class SearchBatchReply(_message.Message):
    __slots__ = ("epoch", "lsn", "exact", "counts", "points", "scores")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    lsn: int
    exact: bool
    counts: bytes
    points: Points
    scores: bytes
    def __init__(self, epoch: _Optional[int] = ..., lsn: _Optional[int] = ..., exact: bool = ..., counts: _Optional[bytes] = ..., points: _Optional[_Union[Points, _Mapping]] = ..., scores: _Optional[bytes] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("collection", "ids", "payload", "with_vector", "after")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    WITH_VECTOR_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    collection: int
    ids: Ids
    payload: PayloadPart
    with_vector: bool
    after: str
    def __init__(self, collection: _Optional[int] = ..., ids: _Optional[_Union[Ids, _Mapping]] = ..., payload: _Optional[_Union[PayloadPart, _Mapping]] = ..., with_vector: bool = ..., after: _Optional[str] = ...) -> None: ...

class PointsReply(_message.Message):
    __slots__ = ("epoch", "lsn", "points")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    lsn: int
    points: Points
    def __init__(self, epoch: _Optional[int] = ..., lsn: _Optional[int] = ..., points: _Optional[_Union[Points, _Mapping]] = ...) -> None: ...

class ScanRequest(_message.Message):
    __slots__ = ("collection", "filter", "start", "limit", "payload", "with_vector", "after")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    WITH_VECTOR_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    collection: int
    filter: bytes
    start: Ids
    limit: int
    payload: PayloadPart
    with_vector: bool
    after: str
    def __init__(self, collection: _Optional[int] = ..., filter: _Optional[bytes] = ..., start: _Optional[_Union[Ids, _Mapping]] = ..., limit: _Optional[int] = ..., payload: _Optional[_Union[PayloadPart, _Mapping]] = ..., with_vector: bool = ..., after: _Optional[str] = ...) -> None: ...

class CountRequest(_message.Message):
    __slots__ = ("collection", "filter", "after")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    collection: int
    filter: bytes
    after: str
    def __init__(self, collection: _Optional[int] = ..., filter: _Optional[bytes] = ..., after: _Optional[str] = ...) -> None: ...

class CountReply(_message.Message):
    __slots__ = ("epoch", "lsn", "count")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    lsn: int
    count: int
    def __init__(self, epoch: _Optional[int] = ..., lsn: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class AddFieldRequest(_message.Message):
    __slots__ = ("write", "collection", "name", "type")
    WRITE_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    write: Write
    collection: int
    name: str
    type: str
    def __init__(self, write: _Optional[_Union[Write, _Mapping]] = ..., collection: _Optional[int] = ..., name: _Optional[str] = ..., type: _Optional[str] = ...) -> None: ...

class OptimizeRequest(_message.Message):
    __slots__ = ("collection",)
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    collection: int
    def __init__(self, collection: _Optional[int] = ...) -> None: ...

class OptimizeReply(_message.Message):
    __slots__ = ("epoch", "lsn", "done", "total")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    lsn: int
    done: int
    total: int
    def __init__(self, epoch: _Optional[int] = ..., lsn: _Optional[int] = ..., done: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...
