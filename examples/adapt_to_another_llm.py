"""Give a trained compressor a second LLM: only the converter and the markers learn.

    pip install -e ".[train]"  # in a checkout
    python examples/adapt_to_another_llm.py my_compressor Qwen/Qwen3-1.7B \
        --questions questions.jsonl --output my_compressor_qwen

The encoder does not change, so memories that were made for the first LLM serve the second one too.
`adapt_to_decoder(..., train="all")` is what the paper does (PCC, section 3.4): it trains more, and
old memories must be made again.
"""

import argparse

from datasets import Dataset

from memslots import MemslotsModel
from memslots.data import load_rows
from memslots.trainer import CompressorConfig, CompressorTrainer
from memslots.trainer.adapt import adapt_to_decoder

parser = argparse.ArgumentParser()
parser.add_argument("checkpoint", help="folder of a trained compressor")
parser.add_argument("decoder", help="the second LLM")
parser.add_argument("--questions", required=True, help="rows {context, question, answer}")
parser.add_argument("--output", required=True)
parser.add_argument("--steps", type=int, default=1000)
parser.add_argument("--batch", type=int, default=16)
options = parser.parse_args()
questions = Dataset.from_list(list(load_rows("jsonl", "train", data_dir=options.questions)))

# 1. A memory that was made for the first LLM.
model = MemslotsModel.from_pretrained(options.checkpoint)
memory = model.compress(questions[0]["context"])

# 2. Another decoder, and everything else frozen. Its converter starts as the old one, turned by the
#    map between the embeddings of the two LLMs, which needs fewer steps than a new one.
adapt_to_decoder(model, options.decoder, train="converter", start="embeddings")

# 3. Train. Questions alone will do for the converter; add {"text"} rows where there are few.
args = CompressorConfig(
    f"{options.output}/training",
    learning_rate=1e-3,
    max_steps=options.steps,
    per_device_train_batch_size=options.batch,
    report_to="none",
)
CompressorTrainer(model, args, train_dataset=questions).train()
model.eval().save_pretrained(options.output)

# 4. The old memory is read by the new LLM: its fingerprint is that of the same encoder.
adapted = MemslotsModel.from_pretrained(options.output)
print(adapted.generate(memory=memory, question=questions[0]["question"], max_new_tokens=32))
