"""`memslots ask`: questions about a text or a memory, named as options or typed in a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text as Shown

from .options import (
    Device,
    Dtype,
    Exact,
    Fidelity,
    Json,
    Literals,
    MaxNewTokens,
    MaxSlots,
    MaybeMemory,
    Model,
    Questions,
    Rate,
    Rates,
    Revision,
    Text,
    err,
    exactly_one,
    for_texts,
    in_steps,
    load_model,
    out,
    print_json,
    read_text,
    say_unknown,
    verification,
)

if TYPE_CHECKING:
    from memslots.modeling import Memory, MemslotsModel
    from memslots.prefix import Prefix


def ask(
    text: Text = None,
    memory: MaybeMemory = None,
    question: Questions = None,
    expand: Annotated[
        list[int] | None,
        typer.Option(
            help="Read this segment as text, counted from 0. Repeat it for more segments."
        ),
    ] = None,
    max_new_tokens: MaxNewTokens = 64,
    as_json: Json = False,
    rate: Rate = None,
    literals: Literals = None,
    rates: Rates = None,
    fidelity: Fidelity = None,
    max_slots: MaxSlots = None,
    exact: Exact = None,
    model: Model = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Answer questions about a text or a saved memory.

    Without --question, the terminal stays open for questions: the text is compressed once, and an
    empty line or Ctrl-D ends.
    """
    exactly_one(**{"--text": text, "--memory": memory})
    if not question:
        check_typing(text, as_json)
    asked = verification(None if memory is not None else rate, rates, fidelity, max_slots, exact)
    beside = for_texts(literals, asked, memory)
    content = read_text(text) if text is not None else None
    compressor = load_model(model, revision, device, dtype)
    from memslots import verified
    from memslots.modeling.layout_memslots import check_room
    from memslots.verified.outline import least_memory

    started = time.perf_counter()
    seconds: dict[str, float | None] = {"compress": None}
    if content is not None:
        least = least_memory(compressor, content, rate, beside, **asked)
        prompts, _ = compressor.processor.prompts(question or ["?"], None, {})
        rows = compressor.memory_rows(least, [(0, prompt) for prompt in prompts])
        check_room(compressor, least, rows, [0] * len(rows), {"max_new_tokens": max_new_tokens})
        kept = verified.compress(
            compressor, content, rate, literals=beside, **in_steps(compressor, content), **asked
        )
        seconds["compress"] = round(time.perf_counter() - started, 3)
    else:
        kept = compressor.load_memory(memory).join()  # several documents are one context here
        kept = kept if rate is None else kept.at_rate(rate)
    read = verified.expanded(compressor, kept, expand) if expand else kept
    say_unknown(kept)
    if not question:
        out.print(_size(kept, seconds["compress"]), style="dim", soft_wrap=True)
        _answer_typed(compressor, read, max_new_tokens)
        return
    started = time.perf_counter()
    answers = _answers(compressor, read, question, max_new_tokens)
    seconds["answer"] = round(time.perf_counter() - started, 3)
    if as_json:
        printed = {
            "answers": [
                {"question": q, "answer": a} for q, a in zip(question, answers, strict=True)
            ],
            "tokens": sum(kept.n_tokens),
            "slots": sum(kept.n_slots),
            "literals": sum(kept.n_literals),
            "segments": len(kept.segments),
            "rate": kept.rate,
            "unknown_tokens": sum(kept.unknown_tokens),
            "seconds": seconds,
            "fingerprint": kept.fingerprint,
        }
        print_json(printed)
        return
    for each, answer in zip(question, answers, strict=True):
        if len(question) > 1:
            out.print(Shown(each, style="dim"), soft_wrap=True)
        out.print(Shown(answer, style="bold"), soft_wrap=True)
    took = f"answered in {seconds['answer']:.2f} s"
    out.print(f"{_size(kept, seconds['compress'])}, {took}", style="dim", soft_wrap=True)
    if sys.stdin and sys.stdin.isatty() and out.is_terminal and text != "-":
        out.print("Leave out --question to ask more without compressing again.", style="dim")


def check_typing(text: str | None, as_json: bool = False) -> None:
    """Refuse, before anything is loaded, where no question can be typed.

    Raises:
        ValueError: no terminal, or standard input that is the text.
    """
    example = '--question "Who signed the treaty?"'
    if as_json:
        raise ValueError(f"--json prints the answers of one call; give {example}.")
    if text == "-":
        raise ValueError(f"--text - reads standard input, so nothing can be typed; give {example}.")
    if not (sys.stdin and sys.stdout and sys.stdin.isatty() and sys.stdout.isatty()):
        raise ValueError(f"give {example}, or run this in a terminal to type questions.")


def typed_questions() -> Iterator[str]:
    """Questions that the user types, until an empty line or Ctrl-D."""
    with suppress(ImportError):
        import readline  # noqa: F401  arrow keys, and earlier questions
    while True:
        try:
            question = input("Question: ").strip()
        except EOFError:
            out.print()
            return
        if not question:
            return
        yield question


def _answer_typed(compressor: MemslotsModel, memory: Memory, most: int) -> None:
    from memslots.prefix import check_keeps_states, prefill

    read: Memory | Prefix = memory
    with suppress(ValueError):  # some decoders keep more than keys and values
        check_keeps_states(compressor.decoder)
        read = prefill(compressor, memory)  # read once for all questions
    out.print("Type a question; an empty line or Ctrl-D ends.", style="dim")
    for question in typed_questions():
        try:
            (answer,) = _answers(compressor, read, [question], most)
        except ValueError as error:  # too long, for instance; the next may do
            err.print(Shown(f"error: {error}"), soft_wrap=True)
            continue
        out.print(Shown(answer, style="bold"), soft_wrap=True)


def _answers(
    compressor: MemslotsModel, memory: Memory | Prefix, questions: list[str], most: int
) -> list[str]:
    settings: dict[str, Any] = {"max_new_tokens": most, "do_sample": False}
    return compressor.generate(memory=memory, question=questions, **settings)


def _size(kept: Memory, seconds: float | None) -> str:
    compressing = "read from disk" if seconds is None else f"compressed in {seconds:.2f} s"
    literals = sum(kept.n_literals)
    beside = f" and {literals} kept verbatim" if literals else ""
    return (
        f"{sum(kept.n_tokens)} tokens -> {sum(kept.n_slots)} slots (rate {kept.rate}){beside}, "
        f"{compressing}"
    )
