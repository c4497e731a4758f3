"""RAG over a folder: an index finds the documents, and the decoder reads their slots.

    pip install -e ".[rag]"
    python examples/rag.py              # generated biographies, tiny
    python examples/rag.py my_texts "Who signed the treaty?" --model my_compressor

The texts are compressed once and stored. A question then costs a look-up in the index,
one read from the store, and an answer. Any index that returns ids will do; this one is
TF-IDF vectors and nearest neighbours from scikit-learn, in memory.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import NearestNeighbors

from memslots import MemslotsModel, embedded
from memslots.evaluation.demo import QUESTIONS, demo_paragraphs
from memslots.evaluation.metrics import exact_match
from memslots.serving.store import MemoryStore

parser = argparse.ArgumentParser()
parser.add_argument("folder", nargs="?", help="folder of .txt files")
parser.add_argument("question", nargs="*")
parser.add_argument("--model", default=embedded("tiny"))
parser.add_argument("--store", help="folder to store the memories in; lost on exit without it")
options = parser.parse_args()

# 1. Documents: the folder's files, or short biographies of people who do not exist.
if options.folder:
    paths = sorted(Path(options.folder).rglob("*.txt"))
    documents = {str(path): path.read_text("utf-8") for path in paths}
    asked = [(question, question, None) for question in options.question]
else:
    names = [person.name for person in QUESTIONS]
    documents = dict(zip(names, demo_paragraphs(), strict=True))
    # These questions name nobody, so the search gets the name as well.
    asked = list(QUESTIONS)
ids, texts = list(documents), list(documents.values())

# 2. Compress what the store does not have yet. A later run with the same --store skips this.
model = MemslotsModel.from_pretrained(options.model, dtype=torch.float32)
temporary = tempfile.TemporaryDirectory()
store = MemoryStore(options.store or Path(temporary.name) / "memories", slot_dtype="int8")
new = [name for name in ids if name not in store]
if new:
    store.add(new, model.compress([documents[name] for name in new]))
print(store)

# 3. Index the texts. The index holds ids and vectors; the texts are not needed after this.
vectorizer = TfidfVectorizer(sublinear_tf=True)
index = NearestNeighbors(n_neighbors=1, metric="cosine").fit(vectorizer.fit_transform(texts))

# 4. Ask. join() would make one context of several documents, for a checkpoint trained on several.
right = 0
for search, question, expected in asked:
    found = ids[index.kneighbors(vectorizer.transform([search]), return_distance=False)[0][0]]
    memory = store.get(found)
    answer = model.generate(memory=memory, question=question, max_new_tokens=32)
    print(f"{question}\n  {found}, {sum(memory.n_slots)} slots: {answer}")
    right += expected is not None and exact_match(answer, expected)
if not options.folder:
    print(f"{right} of {len(asked)} right")
