"""LangChain: retrieve documents, and let the decoder read their memories in place of their texts.

    pip install -e ".[langchain,rag]"
    python examples/langchain_memories.py

The search is any function from a query to ids; with a vector store of LangChain's it is
`lambda query: [document.id for document in vectors.similarity_search(query, k=4)]`.
"""

import asyncio
import tempfile

from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import NearestNeighbors

from memslots import MemslotsModel, embedded
from memslots.integrations.langchain import MemoryChat, MemoryRetriever
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


# 3. A retriever and a chat model, as in any chain.
retriever = MemoryRetriever(store=store, search=search)
chat = MemoryChat(model=model, store=store, max_tokens=16)
(document,) = retriever.invoke("Carmen Moss")
print(f"{document.id}: {document.metadata['tokens']} tokens as {document.metadata['slots']} slots")

question = "In which city does the person live?"
found_for = RunnableLambda(lambda name: chat.about(retriever.invoke(name)).invoke(question))
chain = found_for | StrOutputParser()
answers = chain.batch(["Carmen Moss", "Joseph Evans"])
print(answers)


# 4. Streams and async calls are LangChain's own.
async def answer_in_parts() -> str:
    parts = [part.content async for part in chat.about([document]).astream(question)]
    return "".join(parts)


print(asyncio.run(answer_in_parts()))
