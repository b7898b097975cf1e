"""Semantic search over a folder of text files.

::

    python examples/semantic_search.py index FOLDER
    python examples/semantic_search.py search "how do I restore a backup?"

`index` cuts the folder's files into passages, embeds them and keeps them in a store, a directory unless told. Run it
again when files change, or when it was interrupted: only what changed is embedded anew, and what is gone from the
folder goes from the store.

`--embed module:function` names your embedding, a callable from a list of texts to a list of vectors; without it words
are hashed, which knows spelling and no meaning (see embedding.py). The collection remembers which embedding made it,
and refuses another: vectors of two embeddings do not compare.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from embedding import Embed, load

import vecstore
from vecstore import Collection, Database, Field

SUFFIXES = (".md", ".rst", ".txt")
PASSAGE_CHARS = 800
BATCH_PASSAGES = 256
FIELDS: dict[str, vecstore.FieldType] = {"file": "string", "hash": "string"}


def database(where: str) -> Database:
    """Open the store at a directory, or connect to the server at host:port."""
    host, colon, port = where.rpartition(":")
    if host and colon and port.isdigit():
        return vecstore.connect(where)
    return vecstore.open(where)


def passages(text: str) -> Iterator[tuple[int, str]]:
    """Iterate over the passages of a text with the line each begins at: paragraphs, joined up to a length."""
    first = 1
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        full = sum(map(len, lines)) + len(line) > PASSAGE_CHARS
        if lines and (full or (not line.strip() and sum(map(len, lines)) > PASSAGE_CHARS // 2)):
            yield first, "\n".join(lines).strip()
            lines = []
        if line.strip() or lines:
            first = first if lines else number
            lines.append(line)
    if lines:
        yield first, "\n".join(lines).strip()


def embedded_by(db: Database, name: str, embed: Embed, embedding: str) -> Collection:
    """Return the collection of this name, made for this embedding; refuse one that another embedding made."""
    dim = len(embed(["how long is a vector?"])[0])
    identity = {"provider": embedding, "dimension": dim}
    if name not in db.collections():
        return db.create_collection(name, dim, fields=FIELDS, metadata={"embedding": identity})
    collection = db.collection(name)
    if collection.metadata.get("embedding") != identity:
        raise click.ClickException(f"{name} was made by {collection.metadata.get('embedding')}, not by {identity}")
    return collection


def known_files(collection: Collection) -> dict[str, Counter[str]]:
    """Return the files that the collection holds passages of, each with how many of which contents, by their hash."""
    known: dict[str, Counter[str]] = defaultdict(Counter)
    for point in collection.scan(with_payload=["file", "hash"]):
        known[point.payload["file"]][point.payload["hash"]] += 1
    return known


def refresh(collection: Collection, embed: Embed, folder: Path, say: Callable[[str], Any]) -> None:
    """Make the collection hold the passages of the folder's files as they are now."""
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES}
    known = known_files(collection)
    for gone in sorted(known.keys() - files.keys()):
        collection.delete(filter=Field("file") == gone)
        say(f"gone      {gone}")
    for name, path in files.items():
        contents = path.read_bytes()
        digest = hashlib.sha256(contents).hexdigest()
        found = list(passages(contents.decode(errors="replace")))
        # Counted, not only compared: a run that was interrupted left a part.
        if known.get(name, Counter()) == Counter({digest: len(found)}):
            continue
        for start in range(0, len(found), BATCH_PASSAGES):
            batch = found[start : start + BATCH_PASSAGES]
            ids = [f"{name}#{line}" for line, _ in batch]
            payloads = [{"file": name, "hash": digest, "line": line, "text": text} for line, text in batch]
            collection.upsert(ids, embed([text for _, text in batch]), payloads)
        # The new passages are in; what remains of the old ones is what has another hash.
        collection.delete(filter=(Field("file") == name) & (Field("hash") != digest))
        say(f"{'changed' if name in known else 'new':9} {name}: {len(found)} passages")


@click.group()
@click.option("--store", default="search-store", show_default=True, help="A directory, or host:port of a server.")
@click.option("--collection", "name", default="passages", show_default=True)
@click.option("--embed", "embedding", default="embedding:hashing", show_default=True, help="module:function")
@click.pass_context
def main(context: click.Context, store: str, name: str, embedding: str) -> None:
    """Search a folder of text files by meaning, as far as the embedding knows any."""
    try:
        embed = load(embedding)
        collection = embedded_by(context.with_resource(database(store)), name, embed, embedding)
    except (ValueError, vecstore.VecstoreError) as exc:
        raise click.ClickException(str(exc)) from exc
    context.obj = collection, embed


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.pass_obj
def index(made: tuple[Collection, Embed], folder: Path) -> None:
    """Bring the store up to date with a folder."""
    collection, embed = made
    refresh(collection, embed, folder, click.echo)
    click.echo(f"{collection.count()} passages in {collection.name}")


@main.command()
@click.argument("question")
@click.option("-k", default=3, show_default=True, help="How many passages.")
@click.option("--file", "files", multiple=True, help="Only in this file; may be repeated.")
@click.pass_obj
def search(made: tuple[Collection, Embed], question: str, k: int, files: tuple[str, ...]) -> None:
    """Print the passages nearest to a question."""
    collection, embed = made
    filter = Field("file").is_in(list(files)) if files else None
    for hit in collection.search(embed([question])[0], k, filter=filter):
        click.echo(f"{hit.score:.3f}  {hit.payload['file']}:{hit.payload['line']}")
        for line in hit.payload["text"].splitlines():
            click.echo(f"       {line}")


if __name__ == "__main__":
    main()
