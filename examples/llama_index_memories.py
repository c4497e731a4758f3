"""LlamaIndex: a query engine that retrieves documents and lets the decoder read their memories.

    pip install -e ".[llama-index,rag]"
    python examples/llama_index_memories.py

The search is any function from a query to ids; with an index of LlamaIndex's it is
`lambda query: [found.node.ref_doc_id for found in index.as_retriever().retrieve(query)]`.
"""

import tempfile

from llama_index.core.query_engine import CustomQueryEngine
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import NearestNeighbors

from memslots import MemslotsModel, embedded
from memslots.integrations.llama_index import MemoryLLM, MemoryRetriever
from memslots.serving.store import MemoryStore

texts = {
    "evans.txt": "Joseph Evans is a professor at Cedar Motors. He lives in Mumbai, India.",
    "moss.txt": "Carmen Moss is an engineer at Silver Bank. She lives in Lagos, Nigeria.",
}
ids = list(texts)

# 1. Compress once; the store keeps the memories, and beside them the texts.
model = MemslotsModel.from_pretrained(embedded("tiny"))
folder = tempfile.TemporaryDirectory()
store = MemoryStore(f"{folder.name}/memories")
store.add(ids, model.compress(list(texts.values()), keep_text=True))

# 2. An index of the texts, which finds ids.
vectorizer = TfidfVectorizer()
index = NearestNeighbors(n_neighbors=1).fit(vectorizer.fit_transform(texts.values()))


def search(query: str) -> list[str]:
    rows = index.kneighbors(vectorizer.transform([query]), return_distance=False)[0]
    return [ids[row] for row in rows]


# 3. A query engine. LlamaIndex's own synthesizers would paste the texts into the prompt; this one
#    hands the LLM what was found as memories.
class MemoryQueryEngine(CustomQueryEngine):
    """Answers from the memories of what the retriever finds."""

    retriever: MemoryRetriever
    llm: MemoryLLM

    def custom_query(self, query_str: str) -> str:
        """The answer to a query."""
        found = self.retriever.retrieve(query_str)
        return self.llm.about(found).complete(query_str).text


llm = MemoryLLM(model=model, store=store, max_tokens=16)
engine = MemoryQueryEngine(retriever=MemoryRetriever(store, search), llm=llm)
answer = engine.query("In which city does Carmen Moss live?")
print(answer)

# 4. In parts.
question = "In which city does the person live?"
parts = [part.delta for part in llm.stream_complete(question, memory_ids=["evans.txt"])]
print("".join(parts))
