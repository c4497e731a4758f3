"""`memslots demo`: answers from a text, its memory and a control, and what each costs."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from memslots import __version__
from memslots.checkpoints import embedded

from .ask import check_typing, typed_questions
from .options import (
    Device,
    Dtype,
    Json,
    Model,
    Questions,
    Revision,
    Text,
    err,
    load_model,
    numbers,
    out,
    print_json,
    read_text,
    resolve_model,
    steps,
)


def demo(
    text: Text = None,
    question: Questions = None,
    rates: Annotated[
        str | None,
        typer.Option(help="Show these rates, such as 4,8. By default they are 2, 4 and 8."),
    ] = None,
    tiny: Annotated[
        bool,
        typer.Option("--tiny", help="Use the checkpoint tiny, which needs no other model."),
    ] = False,
    web: Annotated[
        bool, typer.Option("--web", help="Open a page for the browser (extra demo).")
    ] = False,
    host: Annotated[
        str | None,
        typer.Option(help="Listen on this address with --web. By default it is 127.0.0.1."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="Listen on this port with --web. By default it is the first free one from 7860.",
        ),
    ] = None,
    as_json: Json = False,
    model: Model = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Ask about a text, its memory and a control, and compare answers and cost.

    Without --text it is an article that comes with the package, and six questions about it.
    """
    if tiny and model is not None:
        raise ValueError(f"--tiny and --model {model} name two checkpoints; give only one.")
    model = "tiny" if tiny else model
    if web:
        if text is not None or question or rates is not None or as_json:
            raise ValueError(
                "--text, --question, --rates and --json are for the terminal, without --web."
            )
        from .web import serve_page

        return serve_page(model, revision, device, dtype, host or "127.0.0.1", port)
    if host is not None or port is not None:
        raise ValueError("--host and --port go with --web: memslots demo --web --port 8000.")
    if question and text is None:
        raise ValueError('--question goes with --text: --text notes.txt --question "Who signed?".')
    if text is not None and not question:
        check_typing(text, as_json)
    text_page = None if text is None else read_text(text)
    chosen = numbers(rates, "--rates")
    name = resolve_model(model)
    if text_page is not None and not question:
        out.print("Type questions; an empty line or Ctrl-D ends them.", style="dim")
        question = list(typed_questions())
        if not question:
            return
    started = time.perf_counter()
    say = err if as_json else out
    say.print(f"memslots {__version__}: loading {name}", style="dim", soft_wrap=True)
    compressor = load_model(name, revision, device, dtype)
    loaded = time.perf_counter() - started
    from memslots.evaluation import demo as demonstration

    from .demo_view import as_object, show_answers, show_first_tokens

    shown = demonstration.shown_rates(compressor, chosen)
    if text_page is not None:
        page = demonstration.text_page(str(text), text_page, question or [])
    elif name == embedded("tiny"):
        page = demonstration.notes_page()
    else:
        page = demonstration.article_page()
    say.print(f"Compressing and asking {page.title}.\n", style="dim", markup=False)
    answers = sum(map(len, page.asked)) * (len(shown) + 2)
    with steps(answers) as step:
        readings = demonstration.run_demo(compressor, page, shown, step)
    if not as_json:
        show_answers(out, page, readings)
    waits = []
    if text_page is None and name != embedded("tiny"):
        chapter = demonstration.chapter()
        with steps(len(shown) + 1) as step:
            waits = demonstration.first_tokens(compressor, chapter, shown, step)
        if not as_json:
            out.print()
            show_first_tokens(out, "a chapter of The War of the Worlds", waits)
    total = time.perf_counter() - started
    if as_json:
        seconds = {"loading": round(loaded, 3), "all": round(total, 3)}
        print_json({"model": name, **as_object(page, readings, waits), "seconds": seconds})
        return
    out.print(f"\nLoading took {loaded:.1f} s of {total:.1f} s in all. Now try a text of your own:")
    out.print('  memslots demo --text FILE --question "Who signed the treaty?"')
