"""The page: one document, compressed once, and four things to do with its memory."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from . import answers, conversation, documents, reading_back, views
from .answers import Document
from .conversation import Conversation
from .loading import Compressor
from .settings import Settings

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
SESSION_SECONDS = 3600
"""A visitor's memory is forgotten after this time, or when the tab is closed."""

SESSIONS = 200
"""Visitors whose memories are held at once; of more, the ones who were here first are forgotten."""

LITTER_SECONDS = 300
"""Files that were sent past the page, and never read, are deleted after this time."""

MODEL_AT_WORK = "model"
"""All events that run the model wait for one another: it is one model."""

_ENABLED_WHEN_FILLED = """
(...values) => ({__type__: "update", interactive: values.every((v) => v && v.trim() !== "")})
"""

_CHANGED = """
(text, status) => {
  let mark = 0;
  for (let i = 0; i < text.length; i++) mark = (Math.imul(mark, 31) + text.charCodeAt(i)) >>> 0;
  if (!status || status.includes(`data-text="${mark}"`)) return {__type__: "update"};
  const next = text.trim() ? "Changed. Compress it, or just ask." : "Paste a text, or upload one.";
  return {__type__: "update", value: `<p class="hint">${next}</p>`};
}
"""
"""Shows that the document is no longer the one that was compressed; see `views.mark`."""


def build_page(compressor: Compressor, settings: Settings) -> gr.Blocks:
    """The page for one checkpoint.

    Args:
        compressor: the checkpoint.
        settings: texts and limits.
    """
    do = _Actions(compressor, settings)
    examples = json.loads((HERE / "examples.json").read_text("utf-8"))
    rates = sorted(compressor.model.config.compression_rates)
    with gr.Blocks(
        title=settings.title,
        analytics_enabled=False,
        delete_cache=(LITTER_SECONDS, LITTER_SECONDS),
    ) as page:
        document = gr.State(None, time_to_live=SESSION_SECONDS)
        talk = gr.State(None, time_to_live=SESSION_SECONDS)
        gr.Markdown(_heading(settings), elem_classes="heading")
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                text = gr.Textbox(
                    examples[0]["text"],
                    label="Document",
                    lines=8,
                    max_lines=14,
                    max_length=settings.max_characters,
                    elem_id="document",
                    info=f"Up to {settings.max_characters:,} characters",
                )
                with gr.Row():
                    upload = gr.UploadButton(
                        f"Upload {', '.join(documents.SUFFIXES)}",
                        file_types=list(documents.SUFFIXES),
                        size="sm",
                        min_width=90,
                        elem_id="upload",
                    )
                    chosen = [
                        gr.Button(example["label"], size="sm", min_width=90, elem_id=f"example-{i}")
                        for i, example in enumerate(examples)
                    ]
                rate = gr.Radio(
                    [(f"{value}×", value) for value in rates],
                    value=rates[0],
                    label="Rate",
                    info="Tokens of the document that one memory slot stands for",
                    elem_id="rate",
                )
                press = gr.Button("Compress", variant="primary", elem_id="compress")
                status = gr.HTML(elem_id="status")
            with gr.Column(scale=7, min_width=300), gr.Tabs(overflow_behavior="wrap"):
                with gr.Tab("Ask"):
                    question = gr.Textbox(
                        examples[0]["question"],
                        label="Question",
                        max_length=documents.MAX_QUESTION,
                        elem_id="question",
                    )
                    ask = gr.Button("Ask", variant="primary", elem_id="ask")
                    shown = gr.HTML(views.cards([], rates[0]), elem_id="answers")
                    gr.HTML(views.hint(_COSTS))
                with gr.Tab("Segments"):
                    gr.HTML(views.hint(_VERIFY))
                    check = gr.Button("Verify", variant="primary", elem_id="verify")
                    coloured = gr.HTML(elem_id="segments")
                with gr.Tab("Read back"):
                    gr.HTML(views.hint(_READ_BACK))
                    back = gr.Button("Read back", variant="primary", elem_id="read-back")
                    restored = gr.HTML(elem_id="restored")
                with gr.Tab("Chat"):
                    gr.HTML(views.hint(_CHAT))
                    turns = gr.Chatbot(
                        show_label=False,
                        height=320,
                        render_markdown=False,
                        feedback_options=None,
                        buttons=[],
                        placeholder="Ask, then ask again.",
                        elem_id="turns",
                    )
                    message = gr.Textbox(
                        label="Message", max_length=documents.MAX_QUESTION, elem_id="message"
                    )
                    with gr.Row():
                        send = gr.Button(
                            "Send", variant="primary", interactive=False, elem_id="send"
                        )
                        clear = gr.Button("New chat", elem_id="clear")
                    used = gr.HTML(elem_id="used")
        gr.HTML(views.hint(_PRIVACY))

        heavy: dict[str, Any] = {
            "concurrency_id": MODEL_AT_WORK,
            "concurrency_limit": 1,
            "api_visibility": "private",
        }
        light: dict[str, Any] = {
            "queue": False, "show_progress": "hidden", "api_visibility": "private"
        }  # fmt: skip
        taken = [text, rate, document]
        made = [document, status, coloured]
        gr.on(
            [page.load, press.click, rate.input],
            do.compress,
            taken,
            made,
            show_progress_on=status,
            **heavy,
        )
        gr.on(
            [ask.click, question.submit],
            do.ask,
            [*taken, question],
            [*made, shown],
            show_progress_on=shown,
            **heavy,
        )
        check.click(do.verify, taken, made, show_progress_on=coloured, **heavy)
        back.click(do.read_back, taken, [*made, restored], show_progress_on=restored, **heavy)
        gr.on(
            [send.click, message.submit],
            do.talk,
            [*taken, talk, turns, message],
            [*made, talk, turns, message, used],
            show_progress_on=used,
            **heavy,
        )
        gr.on([clear.click, turns.clear], _new_chat, None, [talk, turns, used], **light)
        upload.upload(do.upload, [upload, rate], [text, *made], show_progress_on=status, **heavy)
        for button, example in zip(chosen, examples, strict=True):
            button.click(
                lambda example=example: (example["text"], example["question"]),
                None,
                [text, question],
                **light,
            ).then(do.compress, taken, made, show_progress_on=status, **heavy)
        js: dict[str, Any] = {"js": _ENABLED_WHEN_FILLED, **light}
        text.change(None, [text, status], status, js=_CHANGED, **light)
        text.change(None, text, press, **js)
        text.change(None, text, check, **js)
        text.change(None, text, back, **js)
        gr.on([text.change, question.change], None, [text, question], ask, **js)
        gr.on([text.change, message.change], None, [text, message], send, **js)
    page.queue(max_size=settings.queue, api_open=False)
    return page


def serve(page: gr.Blocks, settings: Settings, **launch: Any) -> Any:
    """Starts the page; nothing is sent anywhere else, and nothing is kept.

    Args:
        page: what `build_page` made.
        settings: its limits.
        launch: further arguments of `Blocks.launch`, such as `server_port`.
    """
    return page.launch(
        share=False,
        show_error=False,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        state_session_capacity=SESSIONS,
        pwa=False,
        footer_links=[],
        max_file_size=documents.max_upload_bytes(settings.max_characters),
        theme=_theme(),
        css_paths=HERE / "page.css",
        **launch,
    )


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


class _Actions:
    """What the page's events do; a mistake becomes a line on the page, never a stack trace."""

    def __init__(self, compressor: Compressor, settings: Settings):
        self.compressor = compressor
        self.settings = settings

    def compress(self, text: str, rate: int, document: Document | None) -> tuple:
        """Compresses the document: new state, status line and coloured text."""
        try:
            return self._made(self._document(text, rate, document))
        except Exception as error:
            return self._not_made(error)

    def ask(self, text: str, rate: int, document: Document | None, question: str) -> Iterator:
        """Compresses where needed, then shows each answer as it comes."""
        try:
            question = documents.check_question(question)
            document = self._document(text, rate, document)
            made, answered = self._made(document), []
            yield *made, views.cards([], rate, waiting=True)
            given = answers.answer_all(
                self.compressor.model, document, question, self.settings.max_new_tokens
            )
            for answer in given:
                answered.append(answer)
                yield *made, views.cards(answered, rate, waiting=True)
            yield *made, views.cards(answered, rate)
        except Exception as error:
            yield gr.skip(), gr.skip(), gr.skip(), views.notice(problem(error))

    def verify(self, text: str, rate: int, document: Document | None) -> tuple:
        """Compresses where needed, and marks in the text what the slots do not give back."""
        try:
            document = self._document(text, rate, document)
            return self._made(answers.verify(self.compressor.model, document))
        except Exception as error:
            return gr.skip(), gr.skip(), views.notice(problem(error))

    def read_back(self, text: str, rate: int, document: Document | None) -> tuple:
        """Compresses where needed, and reconstructs."""
        try:
            document = self._document(text, rate, document)
            found = reading_back.read_back(
                self.compressor.model, document, self.settings.max_segments_read_back
            )
            return *self._made(document), views.reconstruction(found, rate)
        except Exception as error:
            return gr.skip(), gr.skip(), gr.skip(), views.notice(problem(error))

    def talk(
        self,
        text: str,
        rate: int,
        document: Document | None,
        talk: Conversation | None,
        turns: list[dict[str, Any]],
        message: str,
    ) -> tuple:
        """One more turn; another document or rate begins a new conversation."""
        try:
            message = documents.check_question(message)
            document = self._document(text, rate, document)
            if talk is None or not conversation.is_about(talk, document):
                talk, turns = conversation.converse(self.compressor, document), []
            answer = conversation.reply(talk, message, self.settings.max_new_tokens)
            turns = [
                *turns,
                {"role": "user", "content": message},
                {"role": "assistant", "content": answer or "(an empty answer)"},
            ]
            used = views.hint(
                f"{views.plural(len(turns) // 2, 'question')}, the document compressed once. "
                f"Memory and turns take {talk.chat.positions:,} decoder positions."
            )
            return *self._made(document), talk, turns, "", used
        except Exception as error:
            kept = [gr.skip()] * 6
            return *kept, views.notice(problem(error))

    def upload(self, path: str, rate: int) -> tuple:
        """The uploaded text, compressed, or why it is not read."""
        try:
            text = documents.read_upload(path, self.settings.max_characters)
            return text, *self._made(self._document(text, rate, None))
        except Exception as error:
            return gr.skip(), *self._not_made(error)

    def _document(self, text: str, rate: int, document: Document | None) -> Document:
        text = documents.check_document(text, self.settings.max_characters)
        return answers.compress(self.compressor.model, text, rate, document)

    def _made(self, document: Document) -> tuple:
        return document, views.compressed(document), views.segments(document)

    def _not_made(self, error: Exception) -> tuple:
        return gr.skip(), views.notice(problem(error)), gr.skip()


def problem(error: Exception) -> str:
    """What a visitor reads; what they cannot mend goes to the log with its traceback."""
    if isinstance(error, (ValueError, TypeError)):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        logger.exception("out of memory")
        return "Not enough memory for this. Use a shorter document or a coarser rate."
    logger.exception("an event failed")
    return "This did not work. Try again, or with another text."


def _new_chat() -> tuple:
    return None, [], ""


def _heading(settings: Settings) -> str:
    note = f"\n\n{settings.note}" if settings.note else ""
    return f"# {settings.title}\n\n{_WHAT} {_source(settings)}{note}"


def _source(settings: Settings) -> str:
    if Path(settings.model).is_dir():
        return ""
    at = f"@{settings.revision[:7]}" if settings.revision else ""
    return f"Checkpoint: [{settings.model}{at}](https://huggingface.co/{settings.model})."


_WHAT = (
    "The document is compressed once into a few memory slots, which a frozen language model reads "
    "in place of the text."
)
_COSTS = (
    "Positions: what the decoder reads before it answers. KV cache: what it holds for them while "
    "answering. Slots: what is kept of the document."
)
_VERIFY = (
    "Verify: the decoder reads the text once beside the slots, and marks every token that it would "
    "not get back from them."
)
_READ_BACK = "The decoder writes the document again, from its slots alone."
_CHAT = "Many turns over one memory: the document is not compressed again."
_PRIVACY = (
    "Your text is held in memory for this session only and is not stored. A memory is as "
    "confidential as its text: whoever has the checkpoint can reconstruct much of it."
)
