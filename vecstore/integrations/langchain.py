"""A LangChain vector store over one collection, embedded or remote.

>>> from vecstore.integrations.langchain import VecstoreVectorStore
>>> with vecstore.open("my-store") as db:
...     store = VecstoreVectorStore.create(db, embeddings, "docs", fields={"source": "string"})
...     store.add_documents(documents)
...     store.similarity_search("whales", k=4, filter=vecstore.Field("source") == "novel")

A document is a point: its id the point's, its metadata the payload, its text one more key of the payload (`text_key`).
So filters name metadata directly, where the collection declares them as fields. The embeddings object makes the
vectors; nothing here computes any, and nothing owns the database: who opened it closes it.

The async methods embed with the embeddings' own async methods and run the collection's calls in threads, so that the
event loop is never held up. As thread-safe as the collection and the embeddings are.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np

from ..api import Collection, Database
from ..config import RECORD_BYTES_MAX, RECORD_POINTS_MAX
from ..errors import EngineMissing, InvalidArgument, VecstoreError
from ..values import FieldType, Filter, Hits, Metric, Point

try:
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.vectorstores import VectorStore
    from langchain_core.vectorstores.utils import maximal_marginal_relevance
except ImportError as exc:
    raise EngineMissing(
        f"the LangChain vector store needs {exc.name}, which is not installed",
        hint="pip install 'vecstore-db[langchain]'",
    ) from exc

__all__ = ["VecstoreVectorStore"]

BATCH_DOCUMENTS = 1000
"""Documents embedded and written in one record, unless told."""


class VecstoreVectorStore(VectorStore):
    """A LangChain vector store over a vecstore collection whose ids are strings.

    Parameters
    ----------
    collection
        The collection, of any store. Its dimension must be that of the embeddings.
    embedding
        Makes vectors of texts.
    text_key
        The payload's key that holds a document's text; metadata may not use it.

    Notes
    -----
    Every method that searches passes what else it is given to `Collection.search`: `filter`, `recall`, `exact`,
    `effort`, `offset`, `score_threshold`, `after`, `timeout`.
    """

    def __init__(self, collection: Collection, embedding: Embeddings, *, text_key: str = "text") -> None:
        self.collection = collection
        self._embedding = embedding
        self._text_key = text_key

    @classmethod
    def create(
        cls,
        database: Database,
        embedding: Embeddings,
        name: str = "langchain",
        *,
        metric: Metric = "cosine",
        fields: Mapping[str, FieldType] = {},
        text_key: str = "text",
    ) -> Self:
        """Make a collection for these embeddings, or take the one that was made with the same arguments.

        Parameters
        ----------
        fields
            The keys of metadata that filters may name, with their types; `Collection.add_field` declares more later.
        """
        dim = len(embedding.embed_query("how long is a vector?"))
        collection = database.create_collection(name, dim, metric=metric, fields=fields, exist_ok=True)
        return cls(collection, embedding, text_key=text_key)

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        database: Database | None = None,
        **kwargs: Any,
    ) -> Self:
        """Make a collection in `database`, as `create` does with the other arguments, and add texts to it."""
        if database is None:
            raise InvalidArgument("database: none given; vecstore.open or vecstore.connect gives one")
        store = cls.create(database, embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @property
    def embeddings(self) -> Embeddings:
        """What makes vectors of texts."""
        return self._embedding

    # -- writing

    def add_documents(
        self,
        documents: list[Document],
        *,
        ids: list[str] | None = None,
        batch_size: int = BATCH_DOCUMENTS,
        **kwargs: Any,
    ) -> list[str]:
        """Add documents, or replace those of the same ids, record by record.

        Parameters
        ----------
        ids
            Beat the documents' own; documents without either get new ones.
        batch_size
            Documents embedded and written at a time, in one record; fewer where vectors are long.
        kwargs
            Passed to `Collection.upsert`: `ack`, `timeout`.

        Returns
        -------
        list of str
            The documents' ids, in order.

        Raises
        ------
        VecstoreError
            `details["committed"]` says how many documents are in the store; whole records, in order.
        """
        named = self._named(documents, ids)
        for start, batch, names in self._batches(documents, named, batch_size):
            vectors = self._embedding.embed_documents([document.page_content for document in batch])
            self._write(start, names, vectors, batch, kwargs)
        return named

    async def aadd_documents(
        self,
        documents: list[Document],
        *,
        ids: list[str] | None = None,
        batch_size: int = BATCH_DOCUMENTS,
        **kwargs: Any,
    ) -> list[str]:
        """See `add_documents`."""
        named = self._named(documents, ids)
        for start, batch, names in self._batches(documents, named, batch_size):
            vectors = await self._embedding.aembed_documents([document.page_content for document in batch])
            await asyncio.to_thread(self._write, start, names, vectors, batch, kwargs)
        return named

    def delete(self, ids: list[str] | None = None, *, filter: Filter | None = None, **kwargs: Any) -> bool:
        """Remove the documents of exactly one of ids and filter; ids that do not exist are skipped.

        Unlike some, this store does not take "neither" for "all": `Database.drop_collection` removes all.
        """
        if ids is None:
            self.collection.delete(filter=filter, **kwargs)
            return True
        if filter is not None:
            raise InvalidArgument("ids and filter: both given; exactly one is allowed")
        for start in range(0, len(ids), RECORD_POINTS_MAX):
            self.collection.delete(ids=ids[start : start + RECORD_POINTS_MAX], **kwargs)
        return True

    async def adelete(self, ids: list[str] | None = None, *, filter: Filter | None = None, **kwargs: Any) -> bool:
        """See `delete`."""
        return await asyncio.to_thread(self.delete, ids, filter=filter, **kwargs)

    # -- reading

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents of these ids in the order asked; those that do not exist are left out."""
        return [self._document(point) for point in self.collection.get(list(ids))] if ids else []

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """See `get_by_ids`."""
        return await asyncio.to_thread(self.get_by_ids, ids)

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """Return the k documents nearest to a text."""
        return self.similarity_search_by_vector(self._embedding.embed_query(query), k, **kwargs)

    async def asimilarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """See `similarity_search`."""
        return await self.asimilarity_search_by_vector(await self._embedding.aembed_query(query), k, **kwargs)

    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        """Return the k documents nearest to a vector."""
        return [self._document(hit) for hit in self.collection.search(embedding, k, **kwargs)]

    async def asimilarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        """See `similarity_search_by_vector`."""
        return await asyncio.to_thread(self.similarity_search_by_vector, embedding, k, **kwargs)

    def similarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> list[tuple[Document, float]]:
        """Return the k documents nearest to a text with their scores, exact and by the collection's metric."""
        hits = self.collection.search(self._embedding.embed_query(query), k, **kwargs)
        return [(self._document(hit), hit.score) for hit in hits]

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """See `similarity_search_with_score`."""
        vector = await self._embedding.aembed_query(query)
        hits = await asyncio.to_thread(self.collection.search, vector, k, **kwargs)
        return [(self._document(hit), hit.score) for hit in hits]

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """Return k of the `fetch_k` documents nearest to a text, chosen to differ from each other."""
        vector = self._embedding.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, **kwargs)

    async def amax_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """See `max_marginal_relevance_search`."""
        vector = await self._embedding.aembed_query(query)
        return await self.amax_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, **kwargs)

    def max_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """Return k of the `fetch_k` documents nearest to a vector, chosen to differ from each other.

        Parameters
        ----------
        lambda_mult
            1 chooses by nearness alone, 0 by difference alone.
        """
        hits = self.collection.search(embedding, fetch_k, with_vector=True, **kwargs)
        return [self._document(hits[i]) for i in _diverse(embedding, hits, lambda_mult, k)]

    async def amax_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """See `max_marginal_relevance_search_by_vector`."""
        search = self.max_marginal_relevance_search_by_vector
        return await asyncio.to_thread(search, embedding, k, fetch_k, lambda_mult, **kwargs)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return _RELEVANCE[self.collection.metric]

    # -- documents and points

    def _named(self, documents: Sequence[Document], ids: Sequence[str] | None) -> list[str]:
        if ids is not None and len(ids) != len(documents):
            raise InvalidArgument(f"ids: {len(ids)} given for {len(documents)} documents; one for each is allowed")
        given = ids if ids is not None else [document.id for document in documents]
        return [id or str(uuid.uuid4()) for id in given]

    def _batches(
        self, documents: list[Document], ids: list[str], batch_size: int
    ) -> Iterator[tuple[int, list[Document], list[str]]]:
        # Vectors may take a quarter of a record, so that texts have the rest.
        fitting = RECORD_BYTES_MAX // 4 // (4 * self.collection.dim)
        size = max(1, min(batch_size, fitting, RECORD_POINTS_MAX))
        for start in range(0, len(documents), size):
            yield start, documents[start : start + size], ids[start : start + size]

    def _write(
        self,
        committed: int,
        ids: list[str],
        vectors: list[list[float]],
        documents: Iterable[Document],
        options: Mapping[str, Any],
    ) -> None:
        try:
            self.collection.upsert(ids, vectors, [self._payload(document) for document in documents], **options)
        except VecstoreError as exc:
            exc.details["committed"] = committed
            raise

    def _payload(self, document: Document) -> dict[str, Any]:
        if self._text_key in document.metadata:
            raise InvalidArgument(
                f"metadata: {self._text_key!r} is the key of the text", hint="choose another text_key"
            )
        return {**document.metadata, self._text_key: document.page_content}

    def _document(self, point: Point) -> Document:
        metadata = dict(point.payload)
        text = metadata.pop(self._text_key, "")
        return Document(id=str(point.id), page_content=text, metadata=metadata)


def _diverse(vector: Sequence[float], hits: Hits, lambda_mult: float, k: int) -> list[int]:
    vectors = [hit.vector for hit in hits]
    return maximal_marginal_relevance(np.asarray(vector, np.float32), vectors, lambda_mult, k)  # type: ignore[arg-type]


def _of_cosine(score: float) -> float:
    # Rounding may carry a score just over 1, and inner products of longer vectors go anywhere.
    return min(1.0, max(0.0, (1.0 + score) / 2.0))


def _of_l2(score: float) -> float:
    return 1.0 / (1.0 + score)


_RELEVANCE: dict[Literal["cosine", "ip", "l2"], Callable[[float], float]] = {
    "cosine": _of_cosine,
    "ip": _of_cosine,
    "l2": _of_l2,
}
"""Score to relevance from 0 to 1. That of inner products supposes vectors of length 1."""
