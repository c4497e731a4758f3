"""The demonstration: texts, questions about them, and what answers read in place of the text.

Each condition is read once and asked all questions, in the same words (`Asking`), as a server with
a prefix cache does it; the keys and values that this takes are measured, not computed.
"""

from __future__ import annotations

import copy
import gzip
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any, NamedTuple

import torch

from memslots.evaluation.answering import processor_of
from memslots.evaluation.asking import Asking
from memslots.evaluation.likelihood import target_losses
from memslots.modeling import Memory, MemslotsModel
from memslots.modeling.decoders_memslots import run_decoder
from memslots.modeling.layout_memslots import RECONSTRUCTION, Prompt, Row, max_positions

MAX_NEW_TOKENS = 16
RATES = (2, 4, 8)
"""Rates that are shown, of those that a checkpoint has."""


class Asked(NamedTuple):
    """A question, and if it is known its answer.

    Args:
        name: of whom it is about, where the question itself names nobody.
        question: to ask.
        answer: expected, in the words of the text; None if it is not known.
    """

    name: str
    question: str
    answer: str | None


class Page(NamedTuple):
    """What is compressed and asked.

    Args:
        title: says what the texts are.
        texts: documents.
        asked: the questions of each document.
        controls: as many other texts, whose memories are asked the same.
        examples: worked examples before each question.
    """

    title: str
    texts: list[str]
    asked: list[list[Asked]]
    controls: list[str]
    examples: int


class Reading(NamedTuple):
    """What came of one thing to read.

    Args:
        name: of the condition.
        positions: prompt tokens that a text's tokens or slots take, markers counted; mean.
        cache_bytes: that their keys and values take; mean over the texts.
        compressing: seconds, once; None for plain text.
        reading: seconds until the decoder has read them; all texts.
        answering: seconds of one question, mean.
        answers: in the order of the questions; None if they do not fit the decoder.
        nats: that a token of the expected answers costs, mean; None if none is known.
        read_back: share of the text's tokens that are the likeliest after its memory and the true
            tokens before them, each segment by itself; None of the control, or where it
            is not asked for.
    """

    name: str
    positions: float
    cache_bytes: float = 0.0
    compressing: float | None = None
    reading: float = 0.0
    answering: float = 0.0
    answers: list[str] | None = None
    nats: float | None = None
    read_back: float | None = None


QUESTIONS = (
    Asked("Joseph Evans", "What is the person's profession?", "professor"),
    Asked("Wendy Webb", "In which city does the person live?", "Danang"),
    Asked("Julia Hill", "How old is the person?", "93"),
    Asked("Alice Davis", "Which languages does the person speak?", "Hebrew and Spanish"),
    Asked("Rosa Rivera", "Which university did the person attend?", "University of Avalon"),
    Asked("William Hardy", "How many drums does the person own?", "960"),
)
"""One for each paragraph of the notes, in order."""


def demo_paragraphs() -> list[str]:
    """Notes on six people, one per paragraph; no training of the checkpoint `tiny` showed them."""
    return _asset("demo.txt").decode("utf-8").strip().split("\n\n")


def article() -> str:
    """An article on the transatlantic telegraph cable of 1858, written for this package (CC0)."""
    return _asset("demo", "article.txt").decode("utf-8").strip()


def chapter() -> str:
    """A chapter of H. G. Wells, *The War of the Worlds* (1898, public domain)."""
    return gzip.decompress(_asset("demo", "chapter.txt.gz")).decode("utf-8").strip()


def article_page() -> Page:
    """The article and six questions; the control is the beginning of `chapter`."""
    rows = json.loads(_asset("demo", "questions.json"))
    asked = [Asked("", row["question"], row["answer"]) for row in rows]
    return Page("an article on the transatlantic cable of 1858", [article()], [asked], *_control())


def text_page(title: str, text: str, questions: Sequence[str]) -> Page:
    """A text of the user's and questions whose answers are not known."""
    return Page(title, [text], [[Asked("", question, None) for question in questions]], *_control())


def notes_page() -> Page:
    """What the checkpoint `tiny` can read: six notes, each with the next one's as its control."""
    texts = demo_paragraphs()
    asked = [[each] for each in QUESTIONS]
    return Page("notes on six people", texts, asked, [*texts[1:], texts[0]], examples=0)


def _control() -> tuple[list[str], int]:
    return [chapter()[: len(article())]], 3


def _asset(*path: str) -> bytes:
    return files("memslots").joinpath("assets", *path).read_bytes()


def shown_rates(model: MemslotsModel, rates: Sequence[int] | None = None) -> list[int]:
    """Those of `rates` (by default `RATES`, or its first three) that the checkpoint has.

    Raises:
        ValueError: a rate that is asked for and that the checkpoint was not trained for.
    """
    for rate in rates or ():
        processor_of(model).check_rate(rate)
    known = list(model.config.compression_rates)
    return sorted(set(rates or [rate for rate in RATES if rate in known] or known[:3]))


def run_demo(
    model: MemslotsModel,
    page: Page,
    rates: Sequence[int],
    progress: Callable[[str], object] | None = None,
    read_back: bool = True,
) -> list[Reading]:
    """Answers of the full text, of its memory at each rate, and of the control.

    Args:
        model: a compressor with its decoder.
        page: what to compress and ask.
        rates: encoder tokens per slot; the control has the finest.
        progress: called with the name of a condition after each of its answers.
        read_back: whether to measure `Reading.read_back` too, one more reading a rate.

    Raises:
        ValueError: no decoder, or a memory longer than it reads.

    Examples:
        >>> readings = run_demo(model, article_page(), [4])  # doctest: +SKIP
        >>> [reading.name for reading in readings]  # doctest: +SKIP
        ['full text', 'memory, rate 4', 'control, rate 4']
    """
    asking = Asking.of(processor_of(model), page.examples)
    readings = [_read_all(model, page, asking, "full text", None, progress)]
    for rate in rates:
        started = time.perf_counter()
        memory = model.compress(page.texts, rate=rate, progress=False)
        seconds = time.perf_counter() - started
        reading = _read_all(model, page, asking, f"memory, rate {rate}", memory, progress)
        share = _read_back(model, page.texts, memory) if read_back else None
        readings.append(reading._replace(compressing=seconds, read_back=share))
    other = model.compress(page.controls, rate=min(rates), progress=False)
    name = f"control, rate {min(rates)}"
    readings.append(_read_all(model, page, asking, name, other, progress))
    return readings


class FirstToken(NamedTuple):
    """How long a long text keeps its reader waiting.

    Args:
        name: of the condition.
        positions: prompt tokens before the question.
        compressing: seconds, once; None for plain text.
        seconds: from the question to the answer's first token; None if the prompt does not fit.
    """

    name: str
    positions: int
    compressing: float | None
    seconds: float | None


def first_tokens(
    model: MemslotsModel,
    text: str,
    rates: Sequence[int],
    progress: Callable[[str], object] | None = None,
) -> list[FirstToken]:
    """Seconds until an answer begins, from a text and from its memories.

    Args:
        model: a compressor with its decoder.
        text: a long one.
        rates: encoder tokens per slot.
        progress: called with the name of each condition when it is measured.
    """
    asking = Asking.of(processor_of(model))
    readings = []
    for rate in (None, *rates):
        started = time.perf_counter()
        memory = None if rate is None else model.compress([text], rate=rate, progress=False)
        compressing = None if memory is None else time.perf_counter() - started
        name = "full text" if rate is None else f"memory, rate {rate}"
        row, (question,), positions = _row(model, asking, text, ["What happened?"], memory, 0)
        seconds = None
        if _fits(model, row, memory, len(question)):
            started = time.perf_counter()
            with model.reading(with_lora=memory is not None):
                _read_on(model, _read(model, row, memory), question)
            seconds = time.perf_counter() - started
        readings.append(FirstToken(name, positions, compressing, seconds))
        if progress is not None:
            progress(name)
    return readings


def _read_all(
    model: MemslotsModel,
    page: Page,
    asking: Asking,
    name: str,
    memory: Memory | None,
    progress: Callable[[str], object] | None,
) -> Reading:
    """Each text, or its document in `memory`, read once and asked its questions."""
    processor = processor_of(model)
    stops = set(asking.stop_ids(processor))
    answers: list[str] = []
    nats: list[float] = []
    positions = held = 0
    reading = answering = 0.0
    for i, (text, asked) in enumerate(zip(page.texts, page.asked, strict=True)):
        row, afters, taken = _row(model, asking, text, [each.question for each in asked], memory, i)
        positions += taken
        if not _fits(model, row, memory, MAX_NEW_TOKENS + max(map(len, afters))):
            return Reading(name, positions / (i + 1))
        with model.reading(with_lora=memory is not None):
            started = time.perf_counter()
            cache = _read(model, row, memory)
            reading += time.perf_counter() - started
            held += _bytes(cache) * taken / cache.get_seq_length()
            for each, after in zip(asked, afters, strict=True):
                started = time.perf_counter()
                produced = _answer(model, cache, after, stops)
                answering += time.perf_counter() - started
                answers.append(asking.cut(processor.decode(produced)))
                if each.answer is not None:
                    target = asking.answer_ids(processor, each.answer)
                    nats.append(_nats(model, cache, after, target))
                if progress is not None:
                    progress(name)
    return Reading(
        name,
        positions / len(page.texts),
        held / len(page.texts),
        reading=reading,
        answering=answering / len(answers),
        answers=answers,
        nats=sum(nats) / len(nats) if nats else None,
    )


def _read_back(model: MemslotsModel, texts: Sequence[str], memory: Memory) -> float:
    processor = processor_of(model)
    alone = replace(memory, documents=tuple((segment,) for segment in memory.segments))
    targets = [
        processor.decoder_text.encode(texts[segment.text][segment.start : segment.end])
        for segment in memory.segments
    ]
    prompts = [Prompt(processor.bos_ids)] * len(targets)
    losses = target_losses(model, prompts, targets, alone, task=RECONSTRUCTION)
    return sum(loss.right for loss in losses) / sum(loss.tokens for loss in losses)


def _row(
    model: MemslotsModel,
    asking: Asking,
    text: str,
    questions: Sequence[str],
    memory: Memory | None,
    document: int,
) -> tuple[Row, list[list[int]], int]:
    """What is read whatever the question is, the tokens after it of each question, and how many
    prompt tokens the text or the document takes.
    """
    processor = processor_of(model)
    if memory is not None:
        prompts = asking.prompts(processor, questions, None)
        (row,) = model.memory_rows(memory, [(document, Prompt(prompts[0].before))])
        taken = model.memory_positions(memory)[document]
        return row, [prompt.after for prompt in prompts], taken
    # Tokenised as a whole, so that the beginning which all share is looked for.
    asked = [*questions, "Who?", "Is it?"]
    rows = [prompt.before for prompt in asking.prompts(processor, asked, [text] * len(asked))]
    shared = next(i for i, tokens in enumerate(zip(*rows, strict=False)) if len({*tokens}) > 1)
    afters = [tokens[shared:] for tokens in rows[: len(questions)]]
    return Row([], Prompt(rows[0][:shared])), afters, len(processor.decoder_text.encode(text))


def _fits(model: MemslotsModel, row: Row, memory: Memory | None, after: int) -> bool:
    limit = max_positions(model.decoder.config)
    slots = [] if memory is None else [segment.slots for segment in memory.segments]
    return limit is None or processor_of(model).row_length(row, slots) + after <= limit


@torch.no_grad()
def _read(model: MemslotsModel, row: Row, memory: Memory | None) -> Any:
    """The decoder's cache after a row."""
    inputs = model.row_inputs([row], memory)
    embeds = inputs["inputs_embeds"]
    output = run_decoder(
        model.decoder,
        embeds,
        inputs["attention_mask"],
        start=embeds.shape[1] - 1,
        per_layer=inputs.get("per_layer_inputs"),
        use_cache=True,
    )
    return output.past_key_values


@torch.no_grad()
def _read_on(model: MemslotsModel, cache: Any, tokens: Sequence[int]) -> torch.Tensor:
    """Logits `(tokens, vocabulary)`; `cache` then holds the tokens too."""
    ids = torch.tensor([list(tokens)], device=model.decoder.device)
    return model.decoder(input_ids=ids, past_key_values=cache, use_cache=True).logits[0]


def _answer(model: MemslotsModel, cache: Any, after: list[int], stops: set[int]) -> list[int]:
    cache = copy.deepcopy(cache)  # the next question begins where this one did
    produced: list[int] = []
    tokens = after
    while len(produced) < MAX_NEW_TOKENS:
        token = int(_read_on(model, cache, tokens)[-1].argmax())
        if token in stops:
            break
        produced.append(token)
        tokens = [token]
    return produced


def _nats(model: MemslotsModel, cache: Any, after: list[int], target: list[int]) -> float:
    logits = _read_on(model, copy.deepcopy(cache), [*after, *target[:-1]])[len(after) - 1 :]
    target_ids = torch.tensor(target, device=logits.device)
    return torch.nn.functional.cross_entropy(logits.float(), target_ids).item()


def _bytes(cache: Any) -> int:
    """Bytes of a cache's keys and values."""
    tensors = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)
