"""Commands that make and read memories: compress, reconstruct, report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text as Shown

from .options import (
    Device,
    Dtype,
    Exact,
    Fidelity,
    Force,
    Json,
    KeepText,
    Literals,
    MaxSlots,
    MaybeMemory,
    MaybeTexts,
    MemoryFile,
    MemoryOutput,
    Model,
    Rate,
    Rates,
    Revision,
    Text,
    err,
    exactly_one,
    for_texts,
    in_steps,
    literal_names,
    load_model,
    new_file,
    out,
    print_json,
    read_text,
    say_unknown,
    steps,
    verification,
)


def compress(
    files: Annotated[
        list[str],
        typer.Argument(
            help="Compress these text files in UTF-8, one document each; - reads standard input."
        ),
    ],
    output: MemoryOutput,
    force: Force = False,
    as_json: Json = False,
    rate: Rate = None,
    literals: Literals = None,
    rates: Rates = None,
    fidelity: Fidelity = None,
    max_slots: MaxSlots = None,
    exact: Exact = None,
    keep_text: KeepText = False,
    model: Model = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Compress texts and save their memory."""
    new_file(output, force, files)
    if files.count("-") > 1:
        raise ValueError("standard input (-) can be read only once.")
    beside = literal_names(literals)
    asked = verification(rate, rates, fidelity, max_slots, exact, keep_text)
    texts = [read_text(path) for path in files]
    compressor = load_model(
        model, revision, device, dtype, load_decoder=bool({*asked} - {"keep_text"})
    )
    from memslots import verified

    started = time.perf_counter()
    memory = verified.compress(
        compressor, texts, rate, literals=beside, **in_steps(compressor, *texts), **asked
    )
    seconds = time.perf_counter() - started
    memory.save(output)
    say_unknown(memory)
    plain = sum(len(text.encode("utf-8")) for text in texts)
    size = output.stat().st_size
    if as_json:
        print_json(
            {
                "output": str(output),
                "documents": len(memory),
                "tokens": sum(memory.n_tokens),
                "slots": sum(memory.n_slots),
                "literals": sum(memory.n_literals),
                "segments": len(memory.segments),
                "rate": memory.rate,
                "unknown_tokens": sum(memory.unknown_tokens),
                "bytes": size,
                "text_bytes": plain,
                "seconds": round(seconds, 3),
                "fingerprint": memory.fingerprint,
            }
        )
        return
    out.print(Shown(repr(memory)), soft_wrap=True)
    if asked:
        out.print(Shown(verified.report(memory).summary), soft_wrap=True)
    out.print(
        f"{output}: {size} bytes for {plain} bytes of text, {seconds:.2f} s",
        style="dim",
        soft_wrap=True,
        markup=False,
    )


def reconstruct(
    memory: MaybeMemory = None,
    text: Text = None,
    original: Annotated[
        bool,
        typer.Option(
            "--original",
            help="Print the original text, which a memory has if it was made with --keep-text.",
        ),
    ] = False,
    as_json: Json = False,
    rate: Rate = None,
    literals: Literals = None,
    rates: Rates = None,
    fidelity: Fidelity = None,
    max_slots: MaxSlots = None,
    model: Model = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Print the text as the decoder reads it from the slots.

    With --text the text is compressed first, and its tokens that come back right are counted.
    """
    exactly_one(**{"--text": text, "--memory": memory})
    asked = verification(None if memory is not None else rate, rates, fidelity, max_slots)
    beside = for_texts(literals, asked, memory)
    if original and (memory is None or rate is not None):
        raise ValueError("--original goes with --memory, and without --rate.")
    content = read_text(text) if text is not None else None
    compressor = load_model(model, revision, device, dtype, load_decoder=not original)
    if original:
        exact = compressor.reconstruct(compressor.load_memory(memory), exact=True)
        texts = [exact] if isinstance(exact, str) else exact
        if as_json:
            print_json({"texts": texts})
        else:
            for whole in texts:
                typer.echo(whole.encode("utf-8"), nl=False)  # its bytes, and no other line end
        return
    from memslots import verified
    from memslots.evaluation.answering import compare_segments, reconstruct_segments

    if content is not None:
        kept = verified.compress(
            compressor, content, rate, literals=beside, **in_steps(compressor, content), **asked
        )
    else:
        kept = compressor.load_memory(memory)
        kept = kept if rate is None else kept.at_rate(rate)
    with steps(len(kept.segments)) as step:
        produced = reconstruct_segments(compressor, kept, lambda n: step("reading back", n))
    texts, start = [], 0
    for document in kept.documents:
        texts.append("".join(produced[start : start + len(document)]))
        start += len(document)
    right = total = 0
    if content is not None:
        segments = compare_segments(compressor, kept, [content], produced)
        right = sum(sum(segment["right"]) for segment in segments)
        total = sum(len(segment["tokens"]) for segment in segments)
    if as_json:
        counted = {} if content is None else {"tokens_right": right, "decoder_tokens": total}
        sizes = {"tokens": sum(kept.n_tokens), "slots": sum(kept.n_slots), "rate": kept.rate}
        print_json({"texts": texts, **sizes, **counted})
        return
    for whole in texts:
        typer.echo(whole)
    if content is not None:
        slots = f"{sum(kept.n_tokens)} tokens -> {sum(kept.n_slots)} slots"
        err.print(f"{slots}; {right} of {total} decoder tokens right ({right / total:.1%})")


def report(
    memory: MemoryFile,
    text: MaybeTexts = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write the text with its lost tokens marked to this HTML file; --text names the "
            "text.",
        ),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Show how large each segment is and what its slots give back. It needs no checkpoint."""
    if html is not None:
        new_file(html, force, [memory, *(text or [])], "--html")
    texts = None if not text else [read_text(each) for each in text]
    from memslots import verified
    from memslots.modeling import Memory

    report = verified.report(Memory.load(memory), texts)
    typer.echo(report.to_json() if as_json else str(report))
    if html is not None:
        report.save_html(html)
