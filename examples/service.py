"""A web service for documents and search: FastAPI over `vecstore.aio`.

::

    python examples/service.py --store documents-store --port 8000
    curl -X PUT localhost:8000/documents -H 'content-type: application/json' -d '[{"id": "1", "text": "whales sing"}]'
    curl 'localhost:8000/search?q=whale'

What it shows: one store for the whole process, opened and closed with it; embedding in a thread, so that the event loop
is never held up; and vecstore's errors as HTTP statuses. `--store` is a directory (one process then: no second one can
open it) or host:port of a vecstore server (any number of processes). `--embed module:function` names your embedding;
without it words are hashed, which knows spelling and no meaning (see embedding.py).

There is no access control here: it listens on loopback, and belongs behind something that asks who is calling.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import click
import uvicorn
from embedding import Embed, load
from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

import vecstore.aio
from vecstore import VecstoreError

COLLECTION = "documents"
STATUSES = {
    "InvalidArgument": 422,
    "NotFound": 404,
    "AlreadyExists": 409,
    "Overloaded": 429,
    "DeadlineExceeded": 504,
}
"""By error; any other that may pass is 503, the rest are 500."""


class Document(BaseModel):
    """What a caller puts in and gets back."""

    id: str
    text: Annotated[str, Field(min_length=1, max_length=100_000)]
    section: str | None = None


class Found(Document):
    """A document that a search found."""

    score: float


def opened(where: str) -> Any:
    """Return the store at a directory or host:port, to be entered with ``async with``."""
    host, colon, port = where.rpartition(":")
    return vecstore.aio.connect(where) if host and colon and port.isdigit() else vecstore.aio.open(where)


def application(store: str, embed: Embed) -> FastAPI:
    """Return the service over a store."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        dim = len((await asyncio.to_thread(embed, ["how long is a vector?"]))[0])
        async with opened(store) as db:
            app.state.documents = await db.create_collection(
                COLLECTION, dim, fields={"section": "string"}, exist_ok=True
            )
            yield

    app = FastAPI(title="Documents", lifespan=life)
    app.add_exception_handler(VecstoreError, failed)

    @app.get("/healthz")
    async def health(request: Request) -> dict[str, int]:
        return {"documents": await request.app.state.documents.count(timeout=2)}

    @app.put("/documents")
    async def put(request: Request, documents: Annotated[list[Document], Field(max_length=1000)]) -> dict[str, int]:
        vectors = await asyncio.to_thread(embed, [document.text for document in documents])
        payloads = [document.model_dump(exclude={"id"}, exclude_none=True) for document in documents]
        ids = [document.id for document in documents]
        return {"written": (await request.app.state.documents.upsert(ids, vectors, payloads)).count}

    @app.get("/documents/{id}")
    async def get(request: Request, id: str) -> Document:
        points = await request.app.state.documents.get(id)
        if not points:
            raise vecstore.NotFound(f"no document {id!r}")
        return Document(id=id, **points[0].payload)

    @app.delete("/documents/{id}")
    async def delete(request: Request, id: str) -> dict[str, int]:
        return {"removed": (await request.app.state.documents.delete(ids=id)).count}

    @app.get("/search")
    async def search(
        request: Request, q: str, k: Annotated[int, Query(ge=1, le=100)] = 10, section: str | None = None
    ) -> list[Found]:
        vectors = await asyncio.to_thread(embed, [q])
        filter = {"section": section} if section is not None else None
        hits = await request.app.state.documents.search(vectors[0], k, filter=filter)
        return [Found(id=hit.id, score=hit.score, **hit.payload) for hit in hits]

    return app


async def failed(request: Request, exc: Exception) -> JSONResponse:
    """Answer with the status of an error, and with when to try again where it says so."""
    status = STATUSES.get(type(exc).__name__, 503 if getattr(exc, "retryable", False) else 500)
    text = str(exc) if status < 500 else f"{type(exc).__name__} at {request.url.path}"
    wait_s = getattr(exc, "retry_after_s", None)
    headers = {"retry-after": str(max(1, round(wait_s)))} if wait_s is not None else {}
    return JSONResponse({"error": type(exc).__name__, "detail": text}, status, headers)


@click.command()
@click.option("--store", default="documents-store", show_default=True, help="A directory, or host:port of a server.")
@click.option("--embed", "embedding", default="embedding:hashing", show_default=True, help="module:function")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, help="0 takes a free one.")
def main(store: str, embedding: str, host: str, port: int) -> None:
    """Serve documents and search over HTTP."""
    try:
        embed = load(embedding)
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="--embed") from exc
    uvicorn.run(application(store, embed), host=host, port=port)


if __name__ == "__main__":
    main()
