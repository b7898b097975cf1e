"""The LangChain vector store keeps LangChain's own contract, sync and async, and what it promises beyond."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.indexing import IndexingResult, InMemoryRecordManager, aindex, index
from langchain_tests.integration_tests.vectorstores import VectorStoreIntegrationTests

import vecstore
from tests.support.serve import process
from vecstore import Database, Field, InvalidArgument
from vecstore.integrations.langchain import BATCH_DOCUMENTS, VecstoreVectorStore


class Letters(Embeddings):
    """Counts a, b and c: nearness that a reader can work out."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return [text.count(letter) + 0.1 for letter in "abc"]


class LoopOnly(Letters):
    """Embeds only by its async methods, as one would that calls a service."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise AssertionError("the async method exists")

    def embed_query(self, text: str) -> list[float]:
        raise AssertionError("the async method exists")

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return Letters().embed_documents(texts)

    async def aembed_query(self, text: str) -> list[float]:
        return Letters().embed_query(text)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """Supply an empty embedded store."""
    with vecstore.open(str(tmp_path / "store")) as database:
        yield database


@pytest.fixture
def store(database: Database) -> VecstoreVectorStore:
    """Supply a vector store with four documents."""
    texts = ["aaa", "aab", "bbb", "ccc"]
    metadatas = [{"n": n, "kind": "odd" if n % 2 else "even"} for n in range(4)]
    return VecstoreVectorStore.from_texts(
        texts, Letters(), metadatas, ids=["w", "x", "y", "z"], database=database, fields={"kind": "string"}
    )


class TestStandard(VectorStoreIntegrationTests):
    """LangChain's own suite on the embedded store."""

    @pytest.fixture
    def vectorstore(self, database: Database) -> VecstoreVectorStore:
        return VecstoreVectorStore.create(database, self.get_embeddings())


class TestStandardRemote(VectorStoreIntegrationTests):
    """The same suite on a server."""

    @pytest.fixture(scope="class")
    @staticmethod
    def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
        with process(tmp_path_factory.mktemp("server") / "store") as server:
            yield server.grpc

    @pytest.fixture
    def vectorstore(self, server: str) -> Iterator[VecstoreVectorStore]:
        with vecstore.connect(server) as database:
            yield VecstoreVectorStore.create(database, self.get_embeddings())
            database.drop_collection("langchain")


def found(documents: list[Document]) -> list[str]:
    """Return the texts of documents."""
    return [document.page_content for document in documents]


def test_filters_name_metadata(store: VecstoreVectorStore) -> None:
    """What is declared as a field of metadata filters a search, in either form of a filter."""
    assert found(store.similarity_search("aaa", k=4, filter=Field("kind") == "odd")) == ["aab", "ccc"]
    assert found(store.similarity_search("aaa", k=4, filter={"kind": "even"})) == ["aaa", "bbb"]


def test_options_of_a_search_pass_through(store: VecstoreVectorStore) -> None:
    """What `Collection.search` takes, every search here takes; what it does not is an error."""
    assert found(store.similarity_search("aaa", k=1, exact=True, offset=1)) == ["aab"]
    with pytest.raises(InvalidArgument, match="recall"):
        store.similarity_search("aaa", recall=2.0)
    with pytest.raises(TypeError):
        store.similarity_search("aaa", nonsense=True)


def test_scores_are_the_collections(store: VecstoreVectorStore) -> None:
    """Scores are those that the collection gives, nearest first."""
    scored = store.similarity_search_with_score("aaa", k=2)
    hits = store.collection.search(Letters().embed_query("aaa"), 2)
    assert [(document.id, score) for document, score in scored] == [(hit.id, hit.score) for hit in hits]
    assert asyncio.run(store.asimilarity_search_with_score("aaa", k=2)) == scored


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_relevance_is_between_none_and_one(database: Database, metric: vecstore.Metric) -> None:
    """Under every metric relevance falls from at most 1 to at least 0 as nearness does."""
    store = VecstoreVectorStore.create(database, DeterministicFakeEmbedding(size=8), metric=metric)
    store.add_texts([f"text {n}" for n in range(20)])
    relevance = [score for _, score in store.similarity_search_with_relevance_scores("text 7", k=20)]
    assert relevance == sorted(relevance, reverse=True)
    assert max(relevance) <= 1.0
    assert min(relevance) >= 0.0
    if metric != "ip":  # those vectors are not of length 1
        assert relevance[0] == pytest.approx(1.0)


def test_a_retriever_with_a_threshold(store: VecstoreVectorStore) -> None:
    """LangChain's retriever works on the store, its threshold on relevance too."""
    search = {"k": 4, "score_threshold": 0.9}
    retriever = store.as_retriever(search_type="similarity_score_threshold", search_kwargs=search)
    assert found(retriever.invoke("aaa")) == ["aaa", "aab"]


def test_marginal_relevance_prefers_what_differs(store: VecstoreVectorStore) -> None:
    """By nearness alone the second is the second nearest; by difference it is another one."""
    near = store.max_marginal_relevance_search("aaa", k=2, lambda_mult=1.0)
    different = store.max_marginal_relevance_search("aaa", k=2, lambda_mult=0.0)
    assert found(near) == ["aaa", "aab"]
    assert found(different)[1] in ("bbb", "ccc")
    assert asyncio.run(store.amax_marginal_relevance_search("aaa", k=2, lambda_mult=0.0)) == different


def test_async_methods_embed_on_the_loop(database: Database) -> None:
    """The async methods use the embeddings' async methods alone."""
    database.create_collection("letters", 3)
    store = VecstoreVectorStore(database.collection("letters"), LoopOnly())

    async def use() -> list[list[str]]:
        await store.aadd_documents([Document("aab", id="x"), Document("ccc", id="z")])
        searches = store.asimilarity_search("c", k=1), store.amax_marginal_relevance_search("a", k=1)
        return [found(await search) for search in searches]

    assert asyncio.run(use()) == [["ccc"], ["aab"]]


def test_many_documents_go_in_several_records(database: Database) -> None:
    """More documents than one record takes are added all, record by record, and removed so too."""
    store = VecstoreVectorStore.create(database, Letters())
    ids = store.add_texts(["abc"] * (BATCH_DOCUMENTS + 1))
    assert store.collection.count() == len(set(ids)) == BATCH_DOCUMENTS + 1
    assert store.delete(ids[1:])
    assert found(store.get_by_ids(ids)) == ["abc"]


def test_a_failed_call_says_how_much_is_in(database: Database) -> None:
    """The error of a later record says how many documents the earlier ones hold."""
    store = VecstoreVectorStore.create(database, Letters(), fields={"n": "int64"})
    documents = [Document("abc", metadata={"n": n}) for n in range(BATCH_DOCUMENTS)]
    with pytest.raises(InvalidArgument) as failed:
        store.add_documents([*documents, Document("abc", metadata={"n": "many"})])
    assert failed.value.details["committed"] == BATCH_DOCUMENTS == store.collection.count()


def test_langchains_indexing_keeps_the_store_up_to_date(database: Database) -> None:
    """LangChain's own indexing adds what is new, skips what is known and removes what is gone, sync and async."""
    store = VecstoreVectorStore.create(database, Letters())
    manager = InMemoryRecordManager("letters")
    manager.create_schema()
    documents = [Document(text, metadata={"source": text}) for text in ("a", "b", "c")]

    def update(texts: list[Document]) -> IndexingResult:
        return index(texts, manager, store, cleanup="full", source_id_key="source", key_encoder="sha256")

    async def aupdate(texts: list[Document]) -> IndexingResult:
        return await aindex(texts, manager, store, cleanup="full", source_id_key="source", key_encoder="sha256")

    assert update(documents)["num_added"] == 3
    again = asyncio.run(aupdate(documents[1:]))
    assert (again["num_added"], again["num_skipped"], again["num_deleted"]) == (0, 2, 1)
    assert store.collection.count() == 2
    assert asyncio.run(aupdate(documents))["num_added"] == 1


def test_a_batch_is_one_record(database: Database) -> None:
    """`batch_size` is how many documents are embedded and written at a time."""
    store = VecstoreVectorStore.create(database, Letters())
    before = database.status()["lsn"]
    store.add_documents([Document("abc")] * 5, batch_size=2)
    assert database.status()["lsn"] == before + 3


def test_metadata_may_not_hide_the_text(database: Database) -> None:
    """Metadata with the text's own key is refused; another key for the text makes room."""
    store = VecstoreVectorStore.create(database, Letters())
    with pytest.raises(InvalidArgument, match="text_key"):
        store.add_texts(["a"], [{"text": "b"}])
    other = VecstoreVectorStore.create(database, Letters(), text_key="page")
    assert other.get_by_ids(other.add_texts(["a"], [{"text": "b"}]))[0].metadata == {"text": "b"}


def test_ids_must_be_as_many_as_documents(database: Database) -> None:
    """A wrong number of ids is refused, whole."""
    store = VecstoreVectorStore.create(database, Letters())
    with pytest.raises(InvalidArgument, match="2 given for 1"):
        store.add_documents([Document("a")], ids=["x", "y"])
    assert store.collection.count() == 0


def test_deleting_takes_ids_or_a_filter(store: VecstoreVectorStore) -> None:
    """Neither and both are refused: an empty argument must not empty a collection."""
    with pytest.raises(InvalidArgument):
        store.delete()
    with pytest.raises(InvalidArgument):
        store.delete(["w"], filter={"kind": "odd"})
    assert store.collection.count() == 4
    assert asyncio.run(store.adelete(filter={"kind": "odd"}))
    assert found(store.get_by_ids(["w", "x", "y", "z"])) == ["aaa", "bbb"]


def test_a_store_needs_a_database(database: Database) -> None:
    """`from_texts` says what it lacks, and with it the async twin does the same."""
    with pytest.raises(InvalidArgument, match="database"):
        VecstoreVectorStore.from_texts(["a"], Letters())
    store = asyncio.run(VecstoreVectorStore.afrom_texts(["a", "c"], Letters(), database=database))
    assert found(store.similarity_search("c", k=1)) == ["c"]
    assert isinstance(store.embeddings, Letters)


def test_without_langchain_the_error_names_the_extra() -> None:
    """A store without the extra says which one brings LangChain."""
    code = (
        "import sys\nsys.modules['langchain_core'] = None\n"
        "import vecstore\n"
        "try:\n    import vecstore.integrations.langchain\n"
        "except vecstore.EngineMissing as exc:\n    print(exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "langchain_core" in done.stdout
    assert "vecstore-db[langchain]" in done.stdout
