"""The page: one document, compressed once, and four things to do with its memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from memslots.chat import ChatMemory

from . import answers, documents, reading_back, views
from .answers import Document
from .examples import Example, examples
from .settings import Settings

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
SESSION_SECONDS = 3600
"""A visitor's memory is forgotten after this time, or when the tab is closed."""

SESSIONS = 200
"""Visitors whose memories are held at once; of more, the ones who were here first are forgotten."""

LITTER_SECONDS = 300
"""Files that were sent past the page, and never read, are deleted after this time."""

KEEP_LAST = 8
"""Turns of a chat that are read as text; older ones are compressed too, by `ChatMemory`."""

HEAVY: Any = {
    "concurrency_id": "model",  # all events that run the model wait for one another: it is one
    "concurrency_limit": 1,
    "api_visibility": "private",
}
LIGHT: Any = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
LAST: Any = {"trigger_mode": "always_last"}
"""Of clicks while an event runs, the last one counts after it; by default Gradio drops them all."""


def _theme() -> gr.themes.Base:
    """Fonts of the visitor's own system, and small print that is dark enough to read."""
    theme = gr.themes.Default(
        primary_hue="indigo",
        font=["ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return theme.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
    )


Shown = dict[Any, Any]
"""What an event changes: components and their new values."""


class Page:
    """Components, and the events between them; a mistake becomes a line, never a stack trace.

    Args:
        model: a `MemslotsModel` with its decoder.
        settings: texts and limits.

    The first example is answered when the page is made, so that visitors see answers at once.
    """

    def __init__(self, model: Any, settings: Settings):
        self.model, self.settings = model, settings
        self.examples = examples(settings.trained_on)
        self.rates = sorted(model.config.compression_rates)
        self.kept = {e.text: self._at_once(e.text, self.rates[0]) for e in self.examples}
        with gr.Blocks(
            title=settings.title,
            analytics_enabled=False,
            delete_cache=(LITTER_SECONDS, LITTER_SECONDS),
        ) as self.blocks:
            self._lay_out()
            self._connect()
        self.blocks.queue(max_size=settings.queue, api_open=False)

    def serve(self, **launch: Any) -> Any:
        """Starts the page; nothing is sent anywhere else, and nothing is kept.

        Args:
            launch: further arguments of `Blocks.launch`, such as `server_port`.
        """
        return self.blocks.launch(
            share=False,
            show_error=False,
            ssr_mode=False,
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            state_session_capacity=SESSIONS,
            pwa=False,
            footer_links=[],
            max_file_size=documents.max_upload_bytes(self.settings.max_characters),
            theme=_theme(),
            css_paths=HERE / "page.css",
            **launch,
        )

    def _lay_out(self) -> None:
        settings, first, rate = self.settings, self.examples[0], self.rates[0]
        question, document = first.questions[0], self.kept[first.text]
        control = self._control(first.text, rate)
        for tokens in (2, settings.max_new_tokens):  # once to warm up: seconds are shown
            shown = list(answers.answer_all(self.model, document, control, question, tokens))
        self.document = gr.State(None, time_to_live=SESSION_SECONDS)
        self.chat = gr.State(None, time_to_live=SESSION_SECONDS)
        gr.Markdown(f"# {settings.title}", elem_classes="heading")
        self.headline = gr.HTML(views.headline(shown, document, question), elem_id="headline")
        on_hub = not Path(settings.model).is_dir()
        at = f"@{settings.revision[:7]}" if settings.revision else ""
        link = f"Checkpoint: [{settings.model}{at}](https://huggingface.co/{settings.model})."
        gr.Markdown(f"{_WHAT} {settings.note} {link if on_hub else ''}", elem_classes="heading")
        with gr.Row():
            self.asked = [
                gr.Dataset(
                    components=["textbox"],
                    samples=[[question] for question in example.questions],
                    label=self._label(example),
                    elem_id=f"example-{i}",
                    min_width=240,
                )
                for i, example in enumerate(self.examples)
            ]
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                self.text = gr.Textbox(
                    first.text,
                    label="Document",
                    lines=8,
                    max_lines=14,
                    elem_id="document",
                    info=f"Up to {settings.max_characters:,} characters",
                )
                kinds = list(documents.SUFFIXES)
                self.upload = gr.UploadButton(
                    f"Upload {', '.join(kinds)}", file_types=kinds, size="sm", elem_id="upload"
                )
                self.rate = gr.Radio(
                    [(f"{value}×", value) for value in self.rates],
                    value=rate,
                    label="Rate",
                    info="Tokens of the document that one memory slot stands for",
                    elem_id="rate",
                )
                status = views.compressed(document, self._warning(first.text))
                self.status = gr.HTML(status, elem_id="status")
            with gr.Column(scale=7, min_width=300), gr.Tabs(overflow_behavior="wrap"):
                with gr.Tab("Ask"):
                    with gr.Row(equal_height=True):
                        self.question = gr.Textbox(
                            question, label="Question", scale=4, min_width=280, elem_id="question"
                        )
                        self.ask_button = gr.Button("Ask", variant="primary", elem_id="ask")
                    cards = views.cards(shown, document, question)
                    self.answers = gr.HTML(cards, elem_id="answers")
                    gr.HTML(views.hint(_COSTS))
                    self.picture = gr.HTML(self._picture(document), elem_id="picture")
                with gr.Tab("Verify"):
                    gr.HTML(views.hint(_VERIFY))
                    self.verify_button = gr.Button("Verify", elem_id="verify")
                    self.report = gr.HTML(elem_id="report")
                with gr.Tab("Read back"):
                    gr.HTML(views.hint(_READ_BACK))
                    self.read_back_button = gr.Button("Read back", elem_id="read-back")
                    self.restored = gr.HTML(elem_id="restored")
                with gr.Tab("Chat"):
                    gr.HTML(views.hint(_CHAT))
                    self.turns = gr.Chatbot(
                        show_label=False,
                        height=320,
                        render_markdown=False,
                        feedback_options=None,
                        buttons=[],
                        placeholder="Ask, then ask again.",
                        elem_id="turns",
                    )
                    self.message = gr.Textbox(label="Message", elem_id="message")
                    self.refused = gr.HTML(elem_id="refused")  # beside `used`, which dims the turns
                    with gr.Row():
                        self.send = gr.Button("Send", elem_id="send")
                        self.clear = gr.Button("New chat", elem_id="clear")
                    self.used = gr.HTML(elem_id="used")
        gr.HTML(views.hint(_PRIVACY))

    def _connect(self) -> None:
        ask = self.ask, [self.question], [self.answers, self.headline]
        chat = [self.chat, self.turns, self.message]
        self._on(self.rate.input, self.compress, **LAST)
        self._on(self.ask_button.click, *ask, **LAST)
        self._on(self.question.submit, *ask, **LAST)
        self._on(self.verify_button.click, self.verify, changed=[self.report])
        self._on(self.read_back_button.click, self.read_back, changed=[self.restored])
        talked = self.talk, chat, [self.refused, self.used, *chat]
        self._on(self.send.click, *talked)
        self._on(self.message.submit, *talked)
        self._on(self.upload.upload, self.read, [self.upload], [self.status, self.text])
        for dataset, example in zip(self.asked, self.examples, strict=True):
            fill = partial(lambda text, sample: (text, sample[0]), example.text)
            chosen = dataset.click(fill, dataset, [self.text, self.question], **LIGHT, **LAST)
            self._on(chosen.then, *ask, **LAST)
        begun = [self.chat, self.turns, self.used, self.refused]
        restart = {"inputs": None, "outputs": begun, **LIGHT}
        gr.on([self.clear.click, self.turns.clear], lambda: (None, [], "", ""), **restart)
        now = [self.text, self.rate, self.question]
        js = (HERE / "page.js").read_text("utf-8")
        js = js.replace("MOST", str(self.settings.max_characters))
        given: list[Any] = [*now, self.message]
        changed = [each.change for each in given]
        gr.on(changed, None, [*now, self.status], self.status, js=js, **LIGHT)
        said: list[Any] = [self.status, self.headline, self.answers, self.picture, self.report]
        said += [self.restored, self.used]
        gr.on([each.change for each in said], None, now, None, js=js, **LIGHT)

    def _on(
        self, event: Any, action: Callable, taken: Any = (), changed: Any = (), **mode: Any
    ) -> None:
        """Runs a generator of `Shown` on an event; what goes wrong is said in `changed[0]`."""
        place = changed[0] if changed else self.status

        def run(*values: Any) -> Iterator[Shown]:
            try:
                yield from action(*values)
            except Exception as error:
                yield {place: views.notice(problem(error))}

        taken = [self.text, self.rate, self.document, *taken]
        changed = list(dict.fromkeys([self.document, self.status, self.picture, *changed]))
        event(run, taken, changed, show_progress_on=place, **HEAVY, **mode)

    def compress(
        self, text: str, rate: int, document: Document | None, question: str = "?"
    ) -> Generator[Shown, None, Document]:
        """Compresses what is not yet compressed at this rate, segment by segment."""
        text = documents.check_document(text, self.settings.max_characters)
        if document is None or document.text != text:
            document = self.kept.get(text)
        most = self.settings.max_new_tokens
        for step in answers.compress(self.model, text, rate, question, most, document):
            if isinstance(step, tuple):
                yield {self.status: views.progress(*step)}
            else:
                document = step
        assert document is not None
        yield {
            self.document: document,
            self.status: views.compressed(document, self._warning(text)),
            self.picture: self._picture(document),
        }
        return document

    def ask(
        self, text: str, rate: int, document: Document | None, question: str
    ) -> Iterator[Shown]:
        """Shows each answer as it comes, and then what they show."""
        question = documents.check_question(question)
        document = yield from self.compress(text, rate, document, question)
        yield {self.answers: views.cards([], document, question)}
        control, shown = self._control(text, rate), []
        most = self.settings.max_new_tokens
        for answer in answers.answer_all(self.model, document, control, question, most):
            shown.append(answer)
            yield {self.answers: views.cards(shown, document, question)}
        yield {self.headline: views.headline(shown, document, question)}

    def verify(self, text: str, rate: int, document: Document | None) -> Iterator[Shown]:
        """Marks in the text what the slots do not give back."""
        document = yield from self.compress(text, rate, document)
        document = answers.verify(self.model, document)
        yield {self.document: document, self.report: views.report(document)}

    def read_back(self, text: str, rate: int, document: Document | None) -> Iterator[Shown]:
        """Reconstructs the document."""
        document = yield from self.compress(text, rate, document)
        most = self.settings.max_segments_read_back
        read = reading_back.read_back(self.model, document, most)
        yield {self.restored: views.reconstruction(read, document)}

    def talk(
        self,
        text: str,
        rate: int,
        document: Document | None,
        chat: tuple[Any, ChatMemory] | None,
        turns: list[dict[str, Any]],
        message: str,
    ) -> Iterator[Shown]:
        """One more turn; another document or rate begins a new conversation."""
        message = documents.check_question(message)
        document = yield from self.compress(text, rate, document, message)
        about = (document.text, rate)
        if chat is None or chat[0] != about:
            memory = ChatMemory(self.model, keep_last=KEEP_LAST, rate=rate)
            memory.memory = document.memory
            chat, turns = (about, memory), []
        turns = [*turns, {"role": "user", "content": message}]
        yield {self.turns: turns, self.message: ""}  # at once: the next message can be typed
        most = self.settings.max_new_tokens
        answer = chat[1].ask(message, max_new_tokens=most, do_sample=False, num_beams=1)
        turns = [*turns, {"role": "assistant", "content": answer or "(an empty answer)"}]
        answered = sum(turn["role"] == "assistant" for turn in turns)
        yield {
            self.chat: chat,
            self.turns: turns,
            self.used: views.chatted(document, answered, chat[1].positions),
        }

    def read(self, _: str, rate: int, document: Document | None, path: str) -> Iterator[Shown]:
        """The text of an uploaded file, compressed."""
        text = documents.read_upload(path, self.settings.max_characters)
        yield {self.text: text}
        yield from self.compress(text, rate, document)

    def _at_once(self, text: str, rate: int, earlier: Document | None = None) -> Document:
        *_, document = answers.compress(self.model, text, rate, earlier=earlier)
        assert isinstance(document, Document)
        return document

    def _control(self, text: str, rate: int) -> Document:
        """Another document than `text`: the first example, or the second."""
        other = next(e.text for e in self.examples if e.text != text)
        return self._at_once(other, rate, self.kept[other])

    def _label(self, example: Example) -> str:
        unlike = self.settings.trained_on and not example.is_like(self.settings.trained_on)
        return f"{example.label} (unlike the training texts)" if unlike else example.label

    def _picture(self, document: Document) -> str:
        return views.picture(document, self.model.processor.encoder_text.backend)

    def _warning(self, text: str) -> str:
        """Says that the compressor may not know such texts; nothing about those that it knows."""
        trained_on = self.settings.trained_on
        alike = [e.text for e in self.examples if e.is_like(trained_on)]
        return _UNLIKE.format(trained_on) if trained_on and text not in alike else ""


def problem(error: Exception) -> str:
    """What a visitor reads; what they cannot mend goes to the log with its traceback."""
    if isinstance(error, (ValueError, TypeError)):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        logger.exception("out of memory")
        return "Not enough memory for this. Use a shorter document or a coarser rate."
    logger.exception("an event failed")
    return "This did not work. Try again, or with another text."


_WHAT = (
    "The document is compressed once into a few memory slots, which a frozen language model reads "
    "in place of the text."
)
_UNLIKE = (
    "This compressor was trained on {}. From other texts its answers may be wrong: compare them "
    "with the full text and the control."
)
_COSTS = (
    "The control answers from the memory of another document: where it gives the same answer, the "
    "answer is a guess. The KV cache is what the decoder holds of the prompt while it answers."
)
_VERIFY = (
    "The decoder reads the text once beside the slots, and marks every token that it would not get "
    "back from them."
)
_READ_BACK = "The decoder writes the document again, from its slots alone."
_CHAT = "Many turns over one memory: the document is not compressed again."
_PRIVACY = (
    "Your text is held in memory for this session only and is not stored. A memory is as "
    "confidential as its text: whoever has the checkpoint can reconstruct much of it."
)
