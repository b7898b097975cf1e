"""The commands that create, fill, read and search collections."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast, get_args

import click
import msgspec
import numpy as np
import numpy.typing as npt

from ..api import Collection, Database
from ..config import K_MAX, RECORD_POINTS_MAX
from ..errors import AlreadyExists, InvalidArgument, NotFound
from ..values import FieldType, Hits, Id, Metric
from .batch import Source
from .bookmark import Shelf
from .files import open_source
from .ingest import import_sources
from .output import Meter, Output, duration, reporting
from .where import missing, open_for_reading, open_for_writing, reaching, state_folder

__all__ = [
    "collections_command",
    "create_command",
    "drop_command",
    "export_command",
    "import_command",
    "print_hits",
    "rename_command",
    "search_command",
]

_INDEXES = ["auto", "flat", "ivf_flat", "ivf_pq", "ivf_sq8", "hnsw"]
_METRICS = list(get_args(Metric))
_EXPORT_ROWS = 4_096


def _fields(_ctx: click.Context, _parameter: click.Parameter, values: Iterable[str]) -> dict[str, FieldType]:
    """Read ``--field name:type``."""
    fields: dict[str, FieldType] = {}
    for value in values:
        name, _, kind = value.rpartition(":")
        if not name or kind not in get_args(FieldType):
            raise click.BadParameter(f"{value!r} is not NAME:TYPE; types are {', '.join(get_args(FieldType))}")
        fields[name] = cast("FieldType", kind)
    return fields


def _json_object(_ctx: click.Context, parameter: click.Parameter, value: str | None) -> dict[str, Any] | None:
    """Read an option that is a JSON object."""
    if value is None:
        return None
    try:
        found = json.loads(value)
    except ValueError as exc:
        raise click.BadParameter(f"not JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise click.BadParameter(f"{parameter.name}: a JSON object is expected")
    return found


_METRIC_OPTION = click.option("--metric", type=click.Choice(_METRICS), help="How near is measured.")
_FIELD_OPTION = click.option(
    "--field", "fields", multiple=True, callback=_fields, metavar="NAME:TYPE", help="A field that filters may name."
)
_INFER_OPTION = click.option("--infer-fields", is_flag=True, help="Declare fields as payloads bring them.")
_INDEX_OPTION = click.option("--index", type=click.Choice(_INDEXES), help="Kind of index; auto unless given.")
_FILTER_OPTION = click.option(
    "--filter", "condition", callback=_json_object, metavar="JSON", help='As in {"section": "web", "size": {"$lt": 9}}.'
)


@click.command("create")
@click.argument("where")
@click.argument("name")
@click.option("--dim", type=int, required=True, help="Length of every vector.")
@_METRIC_OPTION
@_FIELD_OPTION
@_INFER_OPTION
@_INDEX_OPTION
@click.option("--shards", type=int, default=1, show_default=True, help="Parts that are built and searched in parallel.")
@click.option("--metadata", callback=_json_object, metavar="JSON", help="What to keep with the collection.")
@click.option("--exist-ok", is_flag=True, help="Fine if the collection exists and was created with the same arguments.")
@reporting
@reaching
def create_command(
    out: Output,
    *,
    where: str,
    name: str,
    dim: int,
    metric: Metric | None,
    fields: dict[str, FieldType],
    infer_fields: bool,
    index: str | None,
    shards: int,
    metadata: dict[str, Any] | None,
    exist_ok: bool,
) -> None:
    """Create a collection NAME in the store WHERE, and the store where there is none."""
    with open_for_writing(where, create=True) as db:
        collection = db.create_collection(
            name,
            dim,
            metric=metric or "cosine",
            fields=_either(fields, infer_fields),
            index=index or "auto",
            shards=shards,
            metadata=metadata,
            exist_ok=exist_ok,
        )
        made = _described(collection)
    declared = ", ".join(f"{field} {kind}" for field, kind in made["fields"].items()) or "none"
    out.result(
        made,
        f"collection {made['name']} in {where}: {made['dim']} dimensions, {made['metric']}, fields: {declared}",
    )


@click.command("import")
@click.argument("where")
@click.argument("name")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--id", "id_column", metavar="COLUMN", help="Column of ids; else `id` if there is one, else row numbers.")
@click.option("--vector", "vector_column", metavar="COLUMN", help="Column of vectors; else `vector`, or the only one.")
@click.option("--create", is_flag=True, help="Create the collection (and store) as the first file describes it.")
@_METRIC_OPTION
@_FIELD_OPTION
@_INFER_OPTION
@_INDEX_OPTION
@click.option(
    "--batch-rows",
    "batch_rows_max",
    type=click.IntRange(1, RECORD_POINTS_MAX),
    default=RECORD_POINTS_MAX,
    show_default=True,
    help="Rows in one record at most.",
)
@click.option("--restart", is_flag=True, help="Begin at the first row, even where an earlier run was interrupted.")
@reporting
@reaching
def import_command(
    out: Output,
    *,
    where: str,
    name: str,
    files: tuple[str, ...],
    id_column: str | None,
    vector_column: str | None,
    create: bool,
    metric: Metric | None,
    fields: dict[str, FieldType],
    infer_fields: bool,
    index: str | None,
    batch_rows_max: int,
    restart: bool,
) -> None:
    """Write the rows of FILES into the collection NAME.

    Formats, by the ending: Parquet, Arrow (.arrow, .feather), JSON lines (.jsonl), .npy, .npz, .fvecs, HDF5 (.h5).

    Row numbers as ids go on from file to file. All other columns become the payload. An import that was interrupted
    continues when the same command is run again.
    """
    if not create and (metric or fields or infer_fields or index):
        raise click.UsageError("--metric, --field, --infer-fields and --index go with --create")
    sources = [open_source(path, id_column, vector_column) for path in files]
    start_s = time.monotonic()
    with open_for_writing(where, create=create) as db:
        if create and name not in db.collections():
            _create_for(db, name, sources[0], metric, _either(fields, infer_fields), index)
        collection = db.collection(name)
        shelf = Shelf(state_folder(where), name, files, [id_column, vector_column])
        if restart:
            shelf.clear()
        with out.meter(f"import {name}") as meter:
            imported = import_sources(
                db,
                collection,
                sources,
                batch_rows_max=batch_rows_max,
                shelf=shelf,
                progress=meter,
                say=out.say,
            )
        status = db.status()
        count, digest = collection.count(), status["collections"][name]["digest"]
    seconds = time.monotonic() - start_s
    written = imported.rows - imported.resumed_rows
    value = {
        "collection": name,
        "rows": imported.rows,
        "resumed_rows": imported.resumed_rows,
        "count": count,
        "lsn": status["lsn"],
        "digest": digest,
        "seconds": round(seconds, 3),
    }
    resumed = f" ({imported.resumed_rows:,} rows were there from before)" if imported.resumed_rows else ""
    rate = f"{written / seconds:,.0f} rows/s"
    out.result(value, f"{written:,} rows in {duration(seconds)}, {rate}{resumed}; {name} has {count:,} points")


def _create_for(
    db: Database,
    name: str,
    source: Source,
    metric: Metric | None,
    fields: Mapping[str, FieldType] | str,
    index: str | None,
) -> None:
    """Create the collection that a file describes; what was asked for goes before what the file says."""
    said = source.describe()
    declared = fields or ("infer" if said.fields is None else said.fields)
    db.create_collection(
        name,
        said.dim,
        metric=metric or cast("Metric", said.metric or "cosine"),
        fields=cast("Any", declared),
        index=index or said.index or "auto",
        metadata=dict(said.metadata),
    )


@click.command("export")
@click.argument("where")
@click.argument("name")
@click.argument("file", metavar="FILE.parquet")
@_FILTER_OPTION
@click.option("--overwrite", is_flag=True, help="Replace the file where there is one.")
@reporting
@reaching
def export_command(
    out: Output, *, where: str, name: str, file: str, condition: dict[str, Any] | None, overwrite: bool
) -> None:
    """Write the points of the collection NAME to a Parquet file: ids, vectors, declared fields, payloads as JSON.

    The file says what the collection is: `vecstore import --create` makes the same one of it, with the same digest.
    """
    if Path(file).suffix != ".parquet":
        raise InvalidArgument(f"{file}: exports are Parquet", hint="let the name end in .parquet")
    if Path(file).exists() and not overwrite:
        raise AlreadyExists(f"{file} exists", hint="--overwrite replaces it")
    start_s = time.monotonic()
    with open_for_reading(where, out.say) as db:
        collection = db.collection(name)
        known = db.status()["collections"][name]
        about = {**_described(collection), "index": known["index"], "digest": known["digest"]}
        total = collection.count(condition)
        with out.meter(f"export {name}") as meter:
            rows = _write_parquet(collection, condition, file, about, total, meter)
    size = Path(file).stat().st_size
    seconds = time.monotonic() - start_s
    value = {"file": file, "rows": rows, "bytes": size, "digest": known["digest"], "seconds": round(seconds, 3)}
    out.result(value, f"{rows:,} points in {file}, {size:,} bytes, in {duration(seconds)}")


def _write_parquet(
    collection: Collection, condition: Any, file: str, about: dict[str, Any], total: int, meter: Meter
) -> int:
    """Write to a new file beside, sync it, and give it its name: whoever sees the name sees a whole file."""
    try:
        import pyarrow.parquet as pq
    except ImportError as exc:
        raise missing("pyarrow", "cpu") from exc
    from .tables import EXPORT_KEY

    new, rows = f"{file}.new", 0
    reader = collection.to_arrow(condition)
    schema = reader.schema.with_metadata({**(reader.schema.metadata or {}), EXPORT_KEY: msgspec.json.encode(about)})
    meter(0, total)
    try:
        with pq.ParquetWriter(new, schema, compression="zstd", use_dictionary=False) as writer:
            for batch in reader:
                for offset in range(0, batch.num_rows, _EXPORT_ROWS):
                    part = batch.slice(offset, _EXPORT_ROWS)
                    writer.write_batch(part.replace_schema_metadata(schema.metadata))
                    rows += part.num_rows
                    meter(rows, total)
        descriptor = os.open(new, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        Path(new).replace(file)
    finally:
        Path(new).unlink(missing_ok=True)
    return rows


@click.command("search")
@click.argument("where")
@click.argument("name")
@click.option("--like", metavar="ID", help="Search for what is near to this point; it is left out itself.")
@click.option("--vector", "vector_text", metavar="FILE.npy|JSON", help="Search for what is near to this vector.")
@click.option("-k", default=10, show_default=True, help="How many hits.")
@_FILTER_OPTION
@click.option("--recall", type=float, help="Share of the true nearest to expect; 0.95 unless given.")
@click.option("--exact", is_flag=True, help="Compare every point that matches.")
@reporting
@reaching
def search_command(
    out: Output,
    *,
    where: str,
    name: str,
    like: str | None,
    vector_text: str | None,
    k: int,
    condition: dict[str, Any] | None,
    recall: float | None,
    exact: bool,
) -> None:
    """Find the points of the collection NAME that are nearest to a point or a vector."""
    if (like is None) == (vector_text is None):
        raise click.UsageError("give one of --like and --vector")
    with open_for_reading(where, out.say) as db:
        collection = db.collection(name)
        own: Id | None = None
        if like is not None:
            own, vector = _vector_of(collection, like)
        else:
            vector = _given_vector(vector_text or "")
        # One more than was asked for, because the point itself is among them.
        wanted = k + 1 if own is not None and 1 <= k < K_MAX else k
        start_s = time.perf_counter()
        hits = collection.search(vector, wanted, filter=condition, recall=recall, exact=exact)
        seconds = time.perf_counter() - start_s
        metric = collection.metric
    kept = [hit for hit in hits if hit.id != own][:k]
    value = {
        "lsn": hits.lsn,
        "exact": hits.exact,
        "seconds": round(seconds, 6),
        "hits": [{"id": hit.id, "score": hit.score, "payload": hit.payload} for hit in kept],
    }
    out.result(value, lambda: print_hits(out, Hits(kept, hits.lsn, hits.exact), metric, seconds))


def print_hits(out: Output, hits: Hits, metric: str, seconds: float) -> None:
    """Print hits as a table: one column for each key of the payloads."""
    if not hits:
        print("no point matches")
        return
    keys = list(dict.fromkeys(key for hit in hits for key in hit.payload))
    score = "distance²" if metric == "l2" else "score"
    # A payload may have keys named like the columns before it.
    titles = [f"payload {key}" if key in ("id", score) else key for key in keys]
    out.table(["id", score, *titles], [[hit.id, hit.score, *(hit.payload.get(key) for key in keys)] for hit in hits])
    how = "every matching point compared" if hits.exact else "by the index, scores exact"
    out.say(f"{len(hits)} hits in {duration(seconds)}, {how}")


def _vector_of(collection: Collection, like: str) -> tuple[Id, npt.NDArray[np.float32]]:
    """Return the id and vector of the point that `--like` names; digits are an integer where the ids are."""
    for each in _readings(like):
        try:
            points = collection.get([each], with_payload=False, with_vector=True)
        except InvalidArgument:
            # The other kind of id than this collection's.
            continue
        if points:
            vector = points[0].vector
            assert vector is not None
            return points[0].id, vector
    raise NotFound(f"collection {collection.name!r} has no point {like!r}", details={"id": like})


def _readings(like: str) -> Iterator[Id]:
    if like.isascii() and like.isdigit():
        yield int(like)
    yield like


def _given_vector(text: str) -> npt.NDArray[Any]:
    """Read a vector: JSON, or the name of a `.npy` file."""
    if text.lstrip().startswith("["):
        try:
            return np.asarray(json.loads(text))
        except ValueError as exc:
            raise InvalidArgument(f"--vector: not a JSON list of numbers: {exc}") from exc
    try:
        found: npt.NDArray[Any] = np.load(text, allow_pickle=False)
    except (ValueError, EOFError) as exc:
        raise InvalidArgument(f"--vector: {text} is neither a JSON list nor a whole .npy file") from exc
    except FileNotFoundError as exc:
        raise NotFound(f"--vector: {text}: no such file") from exc
    # A matrix of one row is what saving one query of a batch gives.
    return found[0] if found.ndim == 2 and len(found) == 1 else found


@click.command("collections")
@click.argument("where")
@reporting
@reaching
def collections_command(out: Output, *, where: str) -> None:
    """List the collections of the store WHERE."""
    with open_for_reading(where, out.say) as db:
        names = db.collections()
    out.result(names, "\n".join(names) if names else "no collections")


@click.command("rename")
@click.argument("where")
@click.argument("name")
@click.argument("to")
@click.option("--replace", is_flag=True, help="Drop the collection that has the new name, in the same record.")
@reporting
@reaching
def rename_command(out: Output, *, where: str, name: str, to: str, replace: bool) -> None:
    """Give the collection NAME the name TO."""
    with open_for_writing(where) as db:
        db.rename_collection(name, to, replace=replace)
    out.result({"name": to, "was": name}, f"collection {name} is now {to}")


@click.command("drop")
@click.argument("where")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--missing-ok", is_flag=True, help="Fine if there is no such collection.")
@reporting
@reaching
def drop_command(out: Output, *, where: str, name: str, yes: bool, missing_ok: bool) -> None:
    """Drop the collection NAME with all its points."""
    with open_for_writing(where) as db:
        count = db.collection(name).count() if name in db.collections() else 0
        if not yes:
            click.confirm(f"Drop {name} with {count:,} points?", abort=True, err=True)
        db.drop_collection(name, missing_ok=missing_ok)
    out.result({"name": name, "count": count}, f"dropped {name}, {count:,} points")


def _described(collection: Collection) -> dict[str, Any]:
    return {
        "name": collection.name,
        "dim": collection.dim,
        "metric": collection.metric,
        "fields": dict(collection.fields),
        "metadata": dict(collection.metadata),
    }


def _either(fields: dict[str, FieldType], infer: bool) -> Any:
    if fields and infer:
        raise click.UsageError("--field and --infer-fields exclude each other")
    return "infer" if infer else fields
