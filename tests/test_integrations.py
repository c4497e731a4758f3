"""Memories through LangChain and LlamaIndex: answers are `generate`'s, whole and in parts."""

import asyncio
import subprocess
import sys
import threading

import pytest
from tiny_models import QUESTIONS, TEXTS

from memslots.serving.store import MemoryStore

NEW = 8
CHAT = [("system", "Be brief."), ("user", "Hello."), ("assistant", "Hello!"), ("user", "Who?")]
DICTS = [{"role": role, "content": content} for role, content in CHAT]


@pytest.fixture(scope="module")
def store(model, tmp_path_factory):
    kept = MemoryStore(tmp_path_factory.mktemp("integrations") / "store")
    kept.add(["short", "long"], model.compress(TEXTS[:2], keep_text=True), {"year": 1920})
    kept.add("slots", model.compress(TEXTS[2]))
    return kept


def search(query: str) -> list[str]:
    return ["long", "short"] if "treaty" in query else ["slots"]


def expected(model, store, ids, **asked) -> str:
    memory = store.get(ids).join()
    return model.generate(memory=memory, max_new_tokens=NEW, **asked)


def stop_in(answer: str) -> tuple[str, str]:
    """A string in the middle of an answer, and what stands before it."""
    stop = answer[len(answer) // 2 :][:2]
    return stop, answer[: answer.find(stop)].strip()


def answer_threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "memslots-answer"]


def check_documents(found):
    """Pairs of text and metadata of what `search` names for "treaty"."""
    assert [text for text, _ in found] == [TEXTS[1], TEXTS[0]]
    (first, second) = (metadata for _, metadata in found)
    assert (first["memory_id"], second["memory_id"]) == ("long", "short")
    assert first["year"] == 1920
    assert first["slots"] == -(-first["tokens"] // first["rate"]) or first["slots"] > 1


def test_the_libraries_are_imported_only_when_asked_for():
    code = (
        "import sys, memslots, memslots.cli, memslots.integrations\n"
        "theirs = ('langchain', 'llama_index')\n"
        "print(sorted(name for name in sys.modules if name.startswith(theirs)))\n"
        "sys.modules['langchain_core'] = sys.modules['llama_index'] = None\n"
        "for library in theirs:\n"
        "    try: __import__(f'memslots.integrations.{library}')\n"
        "    except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    loaded, of_langchain, of_llama_index = done.stdout.splitlines()
    assert loaded == "[]"
    assert "pip install" in of_langchain
    assert "langchain" in of_langchain.partition("pip install")[2]
    assert "llama-index" in of_llama_index.partition("pip install")[2]


class TestLangChain:
    @pytest.fixture(scope="class")
    def library(self):
        pytest.importorskip("langchain_core")
        from memslots.integrations import langchain

        return langchain

    def test_documents_are_those_that_the_search_names(self, library, store):
        retriever = library.MemoryRetriever(store=store, search=search)
        found = retriever.invoke("the treaty")
        check_documents([(one.page_content, one.metadata) for one in found])
        (bare,) = asyncio.run(retriever.ainvoke("maps"))
        assert (bare.id, bare.page_content) == ("slots", "")
        lost = library.MemoryRetriever(store=store, search=lambda query: ["nobody"])
        with pytest.raises(ValueError, match=r"nobody.*not in the store"):
            lost.invoke("x")

    def test_answers_are_generates(self, library, model, store):
        retriever = library.MemoryRetriever(store=store, search=search)
        chat = library.MemoryChat(model=model, store=store, max_tokens=NEW)
        ids = ["long", "short"]
        about = chat.about(retriever.invoke("the treaty"))
        said = expected(model, store, ids, question=QUESTIONS[0])
        assert about.invoke(QUESTIONS[0]).content == said
        assert chat.invoke(QUESTIONS[0], memory_ids=ids).content == said
        assert said != chat.invoke(QUESTIONS[0], memory_ids=["slots"]).content
        chunks = [chunk.content for chunk in about.stream(QUESTIONS[0])]
        assert "".join(chunks) == said
        assert len([chunk for chunk in chunks if chunk]) > 1
        assert asyncio.run(about.ainvoke(QUESTIONS[0])).content == said
        stop, before = stop_in(said)
        assert about.invoke(QUESTIONS[0], stop=[stop]).content == before
        many = expected(model, store, ids, messages=DICTS)
        assert about.invoke(CHAT).content == many
        assert not answer_threads()

    def test_a_pipeline_retrieves_and_answers(self, library, model, store):
        from langchain_core.output_parsers import StrOutputParser
        from langchain_core.runnables import RunnableLambda

        retriever = library.MemoryRetriever(store=store, search=search)
        chat = library.MemoryChat(model=model, store=store, max_tokens=NEW)
        question = "Where was the treaty signed?"
        answer = RunnableLambda(lambda asked: chat.about(retriever.invoke(asked)).invoke(asked))
        chain = answer | StrOutputParser()
        said = expected(model, store, ["long", "short"], question=question)
        assert chain.invoke(question) == said
        assert chain.batch([question, question]) == [said, said]

    def test_a_cache_knows_what_was_read(self, library, model, store):
        from langchain_core.caches import InMemoryCache

        cache = InMemoryCache()
        chat = library.MemoryChat(model=model, store=store, max_tokens=NEW, cache=cache)
        answers = [
            chat.invoke(QUESTIONS[0], memory_ids=["long"]).content,
            chat.model_copy(update={"memory_ids": ["slots"]}).invoke(QUESTIONS[0]).content,
            chat.model_copy(update={"memory": model.compress(TEXTS[0])})
            .invoke(QUESTIONS[0])
            .content,
        ]
        assert answers == [
            expected(model, store, ids, question=QUESTIONS[0])
            for ids in (["long"], ["slots"], ["short"])
        ]
        assert len(cache._cache) == 3

    def test_a_cache_tells_rates_and_stores_apart(self, library, model, store, tmp_path):
        other = MemoryStore(tmp_path / "store")
        other.add("long", model.compress(TEXTS[2]))
        fine = model.compress(TEXTS[1], rate=2, literals="numbers")
        as_text = fine.as_text({0: TEXTS[0]})
        chats = [
            *(library.MemoryChat(model=model, memory=m) for m in (fine, fine.at_rate(8), as_text)),
            *(
                library.MemoryChat(model=model, store=s, memory_ids=["long"])
                for s in (store, other)
            ),
        ]
        assert len({chat._get_llm_string() for chat in chats}) == 5
        assert (
            chats[0]._get_llm_string()
            == library.MemoryChat(
                model=model, memory=model.compress(TEXTS[1], rate=2, literals="numbers")
            )._get_llm_string()
        )

    def test_mistakes_are_named_and_leaving_ends_the_work(self, library, model, store):
        chat = library.MemoryChat(model=model, max_tokens=400)
        with pytest.raises(ValueError, match="nothing to read"):
            chat.invoke("x")
        with pytest.raises(ValueError, match="give store="):
            chat.invoke("x", memory_ids=["long"])
        held = chat.model_copy(update={"memory": model.compress(TEXTS[0])})
        with pytest.raises(ValueError, match="assistant_model"):
            held.invoke("x", assistant_model=model.decoder)
        parts = held.stream(QUESTIONS[0])
        assert next(parts).content
        parts.close()
        assert not answer_threads()


class TestLlamaIndex:
    @pytest.fixture(scope="class")
    def library(self):
        pytest.importorskip("llama_index.core")
        from memslots.integrations import llama_index

        return llama_index

    def test_nodes_are_those_that_the_search_names(self, library, store):
        retriever = library.MemoryRetriever(store, search)
        found = retriever.retrieve("the treaty")
        check_documents([(one.node.text, one.node.metadata) for one in found])
        (bare,) = asyncio.run(retriever.aretrieve("maps"))
        assert (bare.node.node_id, bare.node.text) == ("slots", "")

    def test_answers_are_generates(self, library, model, store):
        llm = library.MemoryLLM(model=model, store=store, max_tokens=NEW)
        ids = ["long", "short"]
        about = llm.about(library.MemoryRetriever(store, search).retrieve("the treaty"))
        said = expected(model, store, ids, question=QUESTIONS[0])
        assert about.complete(QUESTIONS[0]).text == said
        assert llm.complete(QUESTIONS[0], memory_ids=ids).text == said
        parts = list(about.stream_complete(QUESTIONS[0]))
        assert ("".join(part.delta for part in parts), parts[-1].text) == (said, said)
        assert len(parts) > 1
        assert asyncio.run(about.acomplete(QUESTIONS[0])).text == said
        stop, before = stop_in(said)
        assert about.complete(QUESTIONS[0], stop=[stop]).text == before
        from llama_index.core.llms import ChatMessage

        turns = [ChatMessage(role=role, content=content) for role, content in CHAT]
        many = expected(model, store, ids, messages=DICTS)
        assert about.chat(turns).message.content == many
        assert list(about.stream_chat(turns))[-1].message.content == many
        assert asyncio.run(about.achat(turns)).message.content == many
        assert not answer_threads()

    def test_a_query_engine_retrieves_and_answers(self, library, model, store):
        from llama_index.core.query_engine import CustomQueryEngine

        class Engine(CustomQueryEngine):
            retriever: library.MemoryRetriever
            llm: library.MemoryLLM

            def custom_query(self, query_str: str) -> str:
                return self.llm.about(self.retriever.retrieve(query_str)).complete(query_str).text

        llm = library.MemoryLLM(model=model, store=store, max_tokens=NEW)
        engine = Engine(retriever=library.MemoryRetriever(store, search), llm=llm)
        question = "Where was the treaty signed?"
        said = expected(model, store, ["long", "short"], question=question)
        assert str(engine.query(question)) == said

    def test_it_describes_itself_and_names_mistakes(self, library, model):
        llm = library.MemoryLLM(model=model, max_tokens=NEW)
        assert (llm.metadata.context_window, llm.metadata.num_output) == (512, NEW)
        assert llm.metadata.model_name.startswith("memslots:")
        with pytest.raises(ValueError, match="nothing to read"):
            llm.complete("x")
        assert "model" not in llm.to_dict()
