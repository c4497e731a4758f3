"""Answer from a compressor on the Hub. Nothing of this project has to be installed.

    pip install torch transformers peft    # peft if the encoder has a LoRA
    python examples/answer_from_hub.py owner/name COMMIT --text notes.txt --question "Who?"

`trust_remote_code=True` runs the Python files of that commit: read them first, and name the commit
that you read. A local folder is loaded the same way; its commit is then just "main".
"""

import argparse
from pathlib import Path

from transformers import AutoModel

parser = argparse.ArgumentParser()
parser.add_argument("repo", help="owner/name on the Hub, or a checkpoint's folder")
parser.add_argument("revision", help="the commit whose code you read")
parser.add_argument("--text", required=True, help="text file")
parser.add_argument("--question", required=True, action="append", help="may be given several times")
options = parser.parse_args()

# 1. Load compressor and decoder.
model = AutoModel.from_pretrained(options.repo, trust_remote_code=True, revision=options.revision)

# 2. Compress once. print() shows tokens, slots and bytes, and what the tokenizer could not read.
memory = model.compress(Path(options.text).read_text("utf-8"))
print(memory)

# 3. Ask as often as you like: a list of questions is one batch over one memory.
answers = model.generate(memory=memory, question=options.question, max_new_tokens=32)
for question, answer in zip(options.question, answers, strict=True):
    print(f"{question} {answer}")

# 4. The same at a coarser rate: fewer prompt tokens, and less of the text.
coarsest = max(model.config.compression_rates)
coarse = model.generate(
    context=Path(options.text).read_text("utf-8"),
    question=options.question[0],
    rate=coarsest,
    max_new_tokens=32,
)
print(f"rate {coarsest}: {coarse}")
