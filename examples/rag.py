"""RAG over a memory store: an index finds the documents, and the decoder reads their slots.

    pip install "memslots[rag]"
    python examples/rag.py

The texts are compressed once and kept; a question costs a look-up in the index, a read of a few
memories by id, and an answer. Any index that gives back ids will do: this one is scikit-learn's
TF-IDF vectors and nearest neighbours, in memory.
"""

import random
import tempfile
from importlib.resources import files
from pathlib import Path

import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import NearestNeighbors

from memslots import MemslotsModel
from memslots.data.personas import FACTS, distinct_people, personas
from memslots.evaluation.metrics import exact_match
from memslots.serving.store import MemoryStore

# 1. Documents: forty short biographies of people who do not exist.
rng = random.Random(0)
people = distinct_people(personas("test", seed=62_000), 40)
ids = [f"person-{i}" for i in range(len(people))]
texts = [person.text(rng) for person in people]

# 2. Compress them once into a store. Later runs open the store and skip this.
checkpoint = files("memslots").joinpath("assets", "tiny")
model = MemslotsModel.from_pretrained(str(checkpoint), dtype=torch.float32)
folder = tempfile.TemporaryDirectory()  # yours is a folder that stays
store = MemoryStore(Path(folder.name) / "memories", slot_dtype="int8")
store.add(ids, model.compress(texts, rate=4), [{"name": person.name} for person in people])
print(store)

# 3. Index the texts. The index holds ids and vectors; the texts are not needed after this.
vectorizer = TfidfVectorizer(sublinear_tf=True)
index = NearestNeighbors(n_neighbors=3, metric="cosine").fit(vectorizer.fit_transform(texts))

# 4. Ask. The question names nobody, so the search gets the name as well.
hits = right = 0
for i, person in enumerate(people[:20]):
    fact = FACTS[1 + i % (len(FACTS) - 1)]
    question = person.question(fact)
    nearest = index.kneighbors(vectorizer.transform([person.name]), return_distance=False)[0]
    best = ids[nearest[0]]
    memory = store.get(best)
    answer = model.generate(memory=memory, question=question, max_new_tokens=16)
    hits += best == ids[i]
    right += exact_match(answer, person.answer(fact))
    if i < 5:
        print(f"{person.name}: {question}\n  {best}, {sum(memory.n_slots)} slots: {answer}")
print(f"{hits} of 20 found, {right} of 20 answered right")

# 5. Several documents at once are one context: join() puts their memories one after another.
#    (The embedded checkpoint was trained on one person a context; yours may do better.)
both = store.get([ids[0], ids[1]]).join()
question = people[0].question("profession", people[0].name)
print(f"{question}\n  {model.generate(memory=both, question=question, max_new_tokens=16)}")
