"""Commands that use a checkpoint: ask, compress, reconstruct, demo."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from memslots import __version__
from memslots.checkpoints import embedded

from .options import (
    CONTEXT_HELP,
    Device,
    Dtype,
    Exact,
    Fidelity,
    KeepText,
    Literals,
    MaxSlots,
    Model,
    Rate,
    Rates,
    Revision,
    err,
    exactly_one,
    literal_names,
    load_model,
    numbers,
    out,
    read_text,
    resolve_model,
    verification,
)


def ask(
    question: Annotated[list[str], typer.Option("--question", "-q", help="May be repeated.")],
    context: Annotated[str | None, typer.Option("--context", "-c", help=CONTEXT_HELP)] = None,
    memory: Annotated[
        Path | None, typer.Option("--memory", help="Memory file from `memslots compress`.")
    ] = None,
    rate: Rate = None,
    literals: Literals = None,
    rates: Rates = None,
    fidelity: Fidelity = None,
    max_slots: MaxSlots = None,
    exact: Exact = None,
    expand: Annotated[
        list[int] | None,
        typer.Option(help="Segment to read as text, counted from 0. May be repeated."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    model: Model = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Answer questions about a text or a saved memory."""
    from memslots import verified
    from memslots.modeling.layout_memslots import check_room
    from memslots.verified.outline import least_memory

    exactly_one(**{"--context": context, "--memory": memory})
    asked = verification(None if memory is not None else rate, rates, fidelity, max_slots, exact)
    beside = _for_texts(literals, asked, memory)
    text = read_text(context) if context is not None else None
    compressor = load_model(model, revision, device, dtype)
    started = time.perf_counter()
    seconds: dict[str, float | None] = {"compress": None}
    if text is not None:
        least = least_memory(compressor, text, rate, beside, **asked)
        prompts, _ = compressor.processor.prompts(question, None, {})
        rows = compressor.memory_rows(least, [(0, prompt) for prompt in prompts])
        check_room(compressor, least, rows, [0] * len(rows), {"max_new_tokens": max_new_tokens})
        kept = verified.compress(compressor, text, rate, literals=beside, **asked)
        seconds["compress"] = round(time.perf_counter() - started, 3)
    else:
        kept = compressor.load_memory(memory).join()  # several documents are one context here
        kept = kept if rate is None else kept.at_rate(rate)
    started = time.perf_counter()
    answers = compressor.generate(
        memory=verified.expanded(compressor, kept, expand) if expand else kept,
        question=question,
        max_new_tokens=max_new_tokens,
        do_sample=False,
    )
    seconds["answer"] = round(time.perf_counter() - started, 3)
    if as_json:
        found = {
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
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    for one, answer in zip(question, answers, strict=True):
        if len(question) > 1:
            out.print(Text(one, style="dim"))
        out.print(Text(answer, style="bold"), soft_wrap=True)
    if sum(kept.unknown_tokens):
        err.print(f"{sum(kept.unknown_tokens)} tokens are unknown to the encoder and were lost")
    compressing = "read from disk" if text is None else f"compressed in {seconds['compress']:.2f} s"
    out.print(
        f"{sum(kept.n_tokens)} tokens -> {sum(kept.n_slots)} slots (rate {kept.rate})"
        f"{_told(sum(kept.n_literals))}, {compressing}, answered in {seconds['answer']:.2f} s",
        style="dim",
    )


def compress(
    files: Annotated[list[str], typer.Argument(help="Text files, one document each; - is stdin.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Memory file to write (safetensors).")
    ],
    rate: Rate = None,
    literals: Literals = None,
    rates: Rates = None,
    fidelity: Fidelity = None,
    max_slots: MaxSlots = None,
    exact: Exact = None,
    keep_text: KeepText = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    model: Model = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Compress texts and save their memory."""
    from memslots import verified

    if output.exists() and not force:
        raise ValueError(f"{output} exists; --force replaces it.")
    if files.count("-") > 1:
        raise ValueError("standard input (-) can be read only once.")
    beside = literal_names(literals)
    asked = verification(rate, rates, fidelity, max_slots, exact, keep_text)
    texts = [read_text(path) for path in files]
    compressor = load_model(
        model, revision, device, dtype, load_decoder=bool({*asked} - {"keep_text"})
    )
    started = time.perf_counter()
    memory = verified.compress(compressor, texts, rate, literals=beside, **asked)
    seconds = time.perf_counter() - started
    memory.save(output)
    out.print(Text(repr(memory)), soft_wrap=True)
    if sum(memory.unknown_tokens):
        err.print(f"{sum(memory.unknown_tokens)} tokens are unknown to the encoder and were lost")
    if asked:
        out.print(Text(verified.report(memory).summary), soft_wrap=True)
    plain = sum(len(text.encode("utf-8")) for text in texts)
    out.print(
        f"{output}: {output.stat().st_size} bytes for {plain} bytes of text, {seconds:.2f} s",
        style="dim",
        soft_wrap=True,
    )


def reconstruct(
    memory: Annotated[
        Path | None, typer.Argument(help="Memory file from `memslots compress`.")
    ] = None,
    context: Annotated[str | None, typer.Option("--context", "-c", help=CONTEXT_HELP)] = None,
    rate: Rate = None,
    literals: Literals = None,
    rates: Rates = None,
    fidelity: Fidelity = None,
    max_slots: MaxSlots = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="Print the exact text. The memory must be made with --keep-text."
        ),
    ] = False,
    model: Model = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Print the text as the decoder reads it from the slots; --context counts what is right."""
    exactly_one(MEMORY=memory, **{"--context": context})
    asked = verification(None if memory is not None else rate, rates, fidelity, max_slots)
    beside = _for_texts(literals, asked, memory)
    if exact:
        if memory is None or rate is not None:
            raise ValueError("--exact goes with a memory, as it is: without --context and --rate.")
        compressor = load_model(model, revision, device, dtype, load_decoder=False)
        found = compressor.reconstruct(compressor.load_memory(memory), exact=True)
        for whole in [found] if isinstance(found, str) else found:
            typer.echo(whole.encode("utf-8"), nl=False)  # its bytes, and no other line end
        return
    from memslots import verified
    from memslots.evaluation.answering import compare_segments, reconstruct_segments

    text = read_text(context) if context is not None else None
    compressor = load_model(model, revision, device, dtype)
    if text is not None:
        kept = verified.compress(compressor, text, rate, literals=beside, **asked)
    else:
        kept = compressor.load_memory(memory)
        kept = kept if rate is None else kept.at_rate(rate)
    produced = reconstruct_segments(compressor, kept)
    start = 0
    for document in kept.documents:
        typer.echo("".join(produced[start : start + len(document)]))
        start += len(document)
    if text is not None:
        segments = compare_segments(compressor, kept, [text], produced)
        right = sum(sum(segment["right"]) for segment in segments)
        total = sum(len(segment["tokens"]) for segment in segments)
        slots = f"{sum(kept.n_tokens)} tokens -> {sum(kept.n_slots)} slots"
        err.print(f"{slots}; {right} of {total} decoder tokens right ({right / total:.1%})")


def _for_texts(
    literals: str | None, asked: dict[str, Any], memory: Path | None
) -> list[str] | None:
    """What `--literals` names, after a look at what only a text can be compressed with."""
    if memory is not None and (literals is not None or asked):
        named = [f"--{name.replace('_', '-')}" for name in asked]
        named += ["--literals"] if literals is not None else []
        goes = "goes" if len(named) == 1 else "go"
        raise ValueError(
            f"{', '.join(named)} {goes} with --context: a memory keeps what it was compressed with."
        )
    return literal_names(literals)


def _told(literals: int) -> str:
    return f" and {literals} literal{'s' * (literals != 1)}" if literals else ""


def demo(
    text: Annotated[
        str | None,
        typer.Option("--text", help="Compress this text instead: a file in UTF-8, or -."),
    ] = None,
    question: Annotated[
        list[str] | None, typer.Option("--question", "-q", help="With --text; repeatable.")
    ] = None,
    rates: Annotated[
        str | None, typer.Option(help="Rates to show, such as 4,8; 2, 4 and 8 by default.")
    ] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Use the checkpoint `tiny`, which needs no download.")
    ] = False,
    web: Annotated[
        bool, typer.Option("--web", help="Open a page for the browser (extra demo).")
    ] = False,
    host: Annotated[
        str | None, typer.Option(help="With --web: address to listen on. Default: 127.0.0.1.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="With --web: port. Default: the first free one from 7860."
        ),
    ] = None,
    model: Model = None,
    revision: Revision = None,
    device: Device = None,
) -> None:
    """Ask about a text, its memory and a control, and compare answers and cost."""
    if tiny and model is not None:
        raise ValueError(f"--tiny is a checkpoint and --model {model} is another; give one.")
    model = "tiny" if tiny else model
    if web:
        if text is not None or question or rates is not None:
            raise ValueError("--text, --question and --rates are for the terminal, without --web.")
        from .web import serve_page

        return serve_page(model, revision, device, host or "127.0.0.1", port)
    if host is not None or port is not None:
        raise ValueError("--host and --port go with --web: memslots demo --web --port 8000.")
    if (text is None) != (not question):
        raise ValueError('--text and --question go together: --text notes.txt -q "Who signed?".')
    given = None if text is None else read_text(text)
    chosen = numbers(rates, "--rates")
    name = resolve_model(model)
    started = time.perf_counter()
    out.print(f"memslots {__version__}: loading {name}", style="dim", soft_wrap=True)
    compressor = load_model(name, revision, device)
    loaded = time.perf_counter() - started
    from memslots.evaluation import demo as demonstration

    from .demo_view import show_answers, show_first_tokens

    shown = demonstration.shown_rates(compressor, chosen)
    if given is not None:
        page = demonstration.text_page(str(text), given, question or [])
    elif name == embedded("tiny"):
        page = demonstration.notes_page()
    else:
        page = demonstration.article_page()
    out.print(f"Compressing and asking {page.title}.\n", style="dim")
    show_answers(out, page, demonstration.run_demo(compressor, page, shown))
    if given is None and name != embedded("tiny"):
        out.print()
        chapter = demonstration.chapter()
        waits = demonstration.first_tokens(compressor, chapter, shown)
        show_first_tokens(out, "a chapter of The War of the Worlds", waits)
    total = time.perf_counter() - started
    out.print(f"\nLoading took {loaded:.1f} s, all of it {total:.1f} s. Now with a text of yours:")
    out.print('  memslots demo --text FILE --question "Who signed the treaty?"')
