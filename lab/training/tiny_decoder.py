"""The tiny decoder LM of the embedded checkpoint: trained from scratch on a CPU, then frozen.

It learns one thing well, to use a context in plain text: answer questions about one and about many
people, and repeat. A row carries many questions on one context, for supervision is what a short run
lacks. Every step's rows are a function of (seed, step), so a killed run resumes exactly. A step's
rows have one length and mixed kinds; they are filled up to that length, so little is padding.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import SequentialSampler
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from lab.data.personas import (
    FACTS,
    persona_rows,
)
from lab.training.decoder_rows import QUESTION, REPEAT, DecoderRows
from lab.training.donor import take_tokenizers
from lab.training.induction_init import initialize_induction
from memslots.data.books import iterate_books
from memslots.trainer.saving import last_checkpoint, save_whole


def train_tokenizer(
    recipe: dict[str, Any], books: list[str], output_dir: str | Path
) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE on personas and books and saves it as `tokenizer.json`.

    Args:
        recipe: `vocab_size`, `special_tokens` (role to string), `persona_texts`, `book_characters`.
        books: Book texts; `book_characters` are taken from them in equal parts.
        output_dir: Where the tokenizer is saved.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe["vocab_size"],
        special_tokens=list(recipe["special_tokens"].values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    each = recipe["book_characters"] // max(1, len(books))
    tokenizer.train_from_iterator(
        [*_persona_documents(recipe["persona_texts"]), *(text[:each] for text in books)], trainer
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **recipe["special_tokens"]
    )
    fast.save_pretrained(output_dir)
    return fast


def _persona_documents(count: int) -> Iterator[str]:
    for row in persona_rows("train", count, seed=1, questions=len(FACTS)):
        asked = "".join(
            QUESTION.format(q) + " " + a
            for q, a in zip(row["question"], row["answer"], strict=True)
        )
        yield row["context"] + asked + REPEAT


class TinyDecoderTrainer(Trainer):
    """Trainer with per-token loss weights, steps in order, logits only where there is a loss."""

    def __init__(self, *args, compile_layers: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self.layers = (
            torch.compile(self.model.model, dynamic=False) if compile_layers else self.model.model
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Averages the losses of the step's tokens by their weights."""
        hidden = self.layers(input_ids=inputs["input_ids"], use_cache=False).last_hidden_state
        weights = inputs["weights"][:, 1:]  # (rows, length - 1)
        used = weights > 0
        logits = model.lm_head(hidden[:, :-1][used])  # (used tokens, vocabulary)
        losses = torch.nn.functional.cross_entropy(
            logits, inputs["input_ids"][:, 1:][used], reduction="none"
        )
        loss = (losses * weights[used]).sum() / weights[used].sum()
        return (loss, {"logits": logits}) if return_outputs else loss

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)


class _AccuracyLog(TrainerCallback):
    """Writes one JSON line each logged loss and each evaluation to `log.jsonl`, and prints it."""

    def __init__(self, tokenizer, file: Path, every: int):
        self.tokenizer, self.file, self.every, self.started = (
            tokenizer,
            file,
            every,
            time.monotonic(),
        )
        self.rows = {
            "one": list(persona_rows("validation", 300, seed=2)),
            "many": list(persona_rows("validation", 60, people=12, seed=2)),
        }

    def _write(self, step: int, **values: Any) -> None:
        line = json.dumps(
            {"step": step, "seconds": round(time.monotonic() - self.started), **values}
        )
        print(line, flush=True)
        with self.file.open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Writes the loss."""
        kept = {
            key: round(value, 5)
            for key, value in (logs or {}).items()
            if key in ("loss", "learning_rate", "grad_norm")
        }
        if kept:
            self._write(state.global_step, **kept)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Evaluates every few hundred steps; many people only when they have been trained on."""
        if state.global_step % self.every and state.global_step != state.max_steps:
            return
        rows = (
            self.rows if state.global_step >= 0.4 * state.max_steps else {"one": self.rows["one"]}
        )
        for name, some in rows.items():
            accuracy = answer_accuracy(model, self.tokenizer, some)
            self._write(state.global_step, people=name, accuracy=accuracy)
        repeated = repeat_accuracy(
            model, self.tokenizer, [row["context"] for row in self.rows["one"][:60]]
        )
        self._write(state.global_step, repeat_tokens_right=repeated)


def train_tiny_decoder(
    recipe: dict[str, Any], output_dir: str | Path, books: str | Path | None = None
) -> Path:
    """Trains two tokenizers and the decoder; called again after a kill, it goes on.

    Args:
        recipe: Its sections `tokenizer`, `encoder_tokenizer`, `decoder` (see `tiny.yaml`). With
            `decoder.checkpoint` the decoder and both tokenizers of that checkpoint go on instead.
        output_dir: Receives `decoder/` (model and tokenizer), `encoder_tokenizer/`, `checkpoints/`
            and `log.jsonl`.
        books: A JSONL file of books or a folder of them; PG-19 from the Hub without it.

    Returns:
        The decoder's folder, which `AutoModelForCausalLM` and `AutoTokenizer` load.
    """
    output, section = Path(output_dir), recipe["decoder"]
    decoder_dir = output / "decoder"
    texts = list(iterate_books(books, limit=section["books"]))
    torch.set_num_threads(section["threads"])
    torch.manual_seed(section["seed"])
    if "checkpoint" in section:
        model = take_tokenizers(section["checkpoint"], output).requires_grad_(True).train()
    else:
        model = _new_decoder(recipe, output, texts)
    tokenizer = AutoTokenizer.from_pretrained(decoder_dir)
    dataset = DecoderRows(section, tokenizer, texts)
    trainer = TinyDecoderTrainer(
        model=model,
        train_dataset=dataset,
        data_collator=lambda steps: steps[0],
        compile_layers=section["compile"] and bool(shutil.which("g++") or shutil.which("clang++")),
        callbacks=[_AccuracyLog(tokenizer, output / "log.jsonl", section["evaluate_every"])],
        args=TrainingArguments(
            output_dir=str(output / "checkpoints"),
            max_steps=len(dataset),
            per_device_train_batch_size=1,
            remove_unused_columns=False,
            save_total_limit=2,
            report_to="none",
            dataloader_pin_memory=False,
            disable_tqdm=True,
            seed=section["seed"],
            **section["training"],
        ),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(output / "checkpoints"))
    model.config.use_cache = True  # the Trainer switches it off, and saving would keep that
    save_whole(model.save_pretrained, decoder_dir, last_checkpoint(output / "checkpoints"))
    return decoder_dir


def _new_decoder(recipe: dict[str, Any], output: Path, texts: list[str]) -> LlamaForCausalLM:
    if not (output / "encoder_tokenizer" / "tokenizer.json").exists():
        train_tokenizer(recipe["tokenizer"], texts, output / "decoder")
        train_tokenizer(recipe["encoder_tokenizer"], texts, output / "encoder_tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(output / "decoder")
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **recipe["decoder"]["model"],
        )
    )
    initialize_induction(model)
    return model


def answer_accuracy(
    model, tokenizer, rows: Iterable[dict[str, Any]], batch_tokens: int = 16384
) -> dict[str, float]:
    """Exact match of greedy answers, per fact and "all": each token and the EOS is the argmax.

    Args:
        model: A causal LM.
        tokenizer: Its tokenizer.
        rows: Rows of `persona_rows` with one question each.
        batch_tokens: Tokens in one forward pass.
    """
    examples = []
    for row in rows:
        prompt = row["context"] + QUESTION.format(row["question"])
        prompt_ids = [
            tokenizer.bos_token_id,
            *tokenizer(prompt, add_special_tokens=False).input_ids,
        ]
        answer_ids = [
            *tokenizer(" " + row["answer"], add_special_tokens=False).input_ids,
            tokenizer.eos_token_id,
        ]
        examples.append((row["fact"], prompt_ids, answer_ids))
    right: dict[str, list[float]] = defaultdict(list)
    for (fact, _, _), correct in zip(
        examples, _argmax_right(model, examples, batch_tokens), strict=True
    ):
        right[fact].append(float(all(correct)))
        right["all"].append(float(all(correct)))
    return {fact: round(sum(values) / len(values), 4) for fact, values in sorted(right.items())}


def repeat_accuracy(model, tokenizer, texts: list[str], batch_tokens: int = 16384) -> float:
    """Share of tokens that the model repeats rightly, each after the right ones before it."""
    examples = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        prompt = [
            tokenizer.bos_token_id,
            *ids,
            *tokenizer(REPEAT, add_special_tokens=False).input_ids,
        ]
        examples.append(("repeat", prompt, [*ids, tokenizer.eos_token_id]))
    right = [token for correct in _argmax_right(model, examples, batch_tokens) for token in correct]
    return round(sum(right) / len(right), 4)


@torch.no_grad()
def _argmax_right(model, examples, batch_tokens: int) -> list[list[bool]]:
    """For each (label, prompt ids, target ids): is each target token the model's argmax?"""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i][1]) + len(examples[i][2]))
    width = len(examples[order[-1]][1]) + len(examples[order[-1]][2])
    size = max(1, batch_tokens // width)
    was_training = model.training
    model.eval()
    found: dict[int, list[bool]] = {}
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        longest = len(examples[batch[-1]][1]) + len(examples[batch[-1]][2])
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        for row, i in enumerate(batch):
            joined = examples[i][1] + examples[i][2]
            ids[row, : len(joined)] = torch.tensor(joined)
        predicted = model(input_ids=ids, use_cache=False).logits.argmax(-1)  # (batch, longest)
        for row, i in enumerate(batch):
            _, prompt, target = examples[i]
            first = len(prompt) - 1
            found[i] = [
                p == t
                for p, t in zip(
                    predicted[row, first : first + len(target)].tolist(), target, strict=True
                )
            ]
    model.train(was_training)
    return [found[i] for i in range(len(examples))]


def evaluate_decoder(
    decoder_dir: str | Path, tokenizer_dir: str | Path | None = None, rows: int = 1000
) -> dict[str, Any]:
    """Plain-text accuracy on test people: about one person, about 12, and repeating.

    Args:
        decoder_dir: A folder with the model.
        tokenizer_dir: The tokenizer's folder, where it is not the same one.
        rows: Questions about one person; a tenth as many about 12 people.
    """
    model = AutoModelForCausalLM.from_pretrained(decoder_dir)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir or decoder_dir)
    one = list(persona_rows("test", rows, seed=3))
    many = list(persona_rows("test", max(1, rows // 10), people=12, seed=3))
    return {
        "one": answer_accuracy(model, tokenizer, one),
        "many": answer_accuracy(model, tokenizer, many),
        "repeat_tokens_right": repeat_accuracy(
            model, tokenizer, [row["context"] for row in one[: rows // 5]]
        ),
    }
