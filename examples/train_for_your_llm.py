"""Train a compressor for your own LLM: pre-training on plain text, then questions.

    pip install -e ".[train]"  # in a checkout
    python examples/train_for_your_llm.py openai-community/gpt2 Qwen/Qwen3-0.6B \
        --texts texts.jsonl --questions questions.jsonl --output my_compressor

texts.jsonl has rows {"text"}, questions.jsonl {"context", "question", "answer"}. The decoder stays
bit-identical. `memslots train pcc_lite --set compressor.decoder=...` is the paper's whole recipe;
this is the same trainer in three dozen lines.
"""

import argparse

from datasets import Dataset

from memslots.data import load_rows
from memslots.making import new_compressor
from memslots.trainer import CompressorConfig, CompressorTrainer

parser = argparse.ArgumentParser()
parser.add_argument("encoder", help="a causal LM or a bidirectional encoder")
parser.add_argument("decoder", help="the causal LM that will read the slots")
parser.add_argument("--texts", required=True)
parser.add_argument("--questions", required=True)
parser.add_argument("--output", required=True)
parser.add_argument("--steps", type=int, default=2000, help="of each stage")
parser.add_argument("--batch", type=int, default=16)
options = parser.parse_args()

# 1. A new compressor. It knows nothing yet; its decoder is named, not copied.
model = new_compressor(
    options.encoder, options.decoder, compression_rates=[4, 16], segment_length=256
)
texts = Dataset.from_list(list(load_rows("jsonl", "train", data_dir=options.texts)))
questions = Dataset.from_list(list(load_rows("jsonl", "train", data_dir=options.questions)))

# 2. Pre-training (PCC, eqs. 3 to 5): repeat the text, and continue it.
settings = {"max_steps": options.steps, "per_device_train_batch_size": options.batch}
shared = {**settings, "lr_scheduler_type": "cosine", "max_grad_norm": 0.5, "report_to": "none"}
pretraining = CompressorConfig(f"{options.output}/pretraining", learning_rate=1e-4, **shared)
CompressorTrainer(model, pretraining, train_dataset=texts).train()

# 3. Fine-tuning: answer from the slots alone.
finetuning = CompressorConfig(f"{options.output}/finetuning", learning_rate=5e-5, **shared)
trainer = CompressorTrainer(model, finetuning, train_dataset=questions)
trainer.train()

# 4. Save compressor, processor and code. Loading finds the decoder by its name.
model.eval().save_pretrained(options.output)
first = questions[0]
answer = model.generate(context=first["context"], question=first["question"], max_new_tokens=32)
print(f"{first['question']} {answer} (right: {first['answer']})")
