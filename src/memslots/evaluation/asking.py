"""One way of asking, whatever stands in the context's place: its text, a memory of it, nothing.

The words before the context, the words after it, where an answer ends and how it is cut are the
same for every condition. Text is tokenised as a whole, so that the words read as they do anywhere:
SmolLM2 pays 1.21 nats a gold token after a prompt tokenised as a whole, 1.49 after the same words
whose empty lines are tokens of their own (`docs/log.md`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memslots.evaluation.worked_examples import WorkedExample, worked_examples
from memslots.modeling import MemslotsProcessor
from memslots.modeling.layout_memslots import Prompt
from memslots.modeling.texts_memslots import render_chat

BETWEEN = "\n\n"
"""What parts instruction, examples, context and question."""

INSTRUCTION = "Answer each question with a few words of its text."
"""Says what an answer is, where a decoder is to be told."""

FORMATS = ("plain", "chat")

_CONTEXT = "\ue0f4context\ue0f5"  # private-use characters: no text has them


@dataclass(frozen=True)
class Asking:
    """The words around a context.

    Args:
        question: the words of a question with `{question}` in them; they end where the answer
            begins, without white space.
        instruction: what stands before everything; empty for none.
        examples: shown before the context, asked and answered in the same words.
        format: "plain" text, or "chat": each example and the question is a turn of the decoder's
            chat template, the instruction its system message.
        one_line: whether an answer ends at its first newline.

    Examples:
        >>> asking = Asking.of(model.processor, examples=3)                 # doctest: +SKIP
        >>> prompts = asking.prompts(model.processor, ["Who?"], [text])     # doctest: +SKIP
    """

    question: str = "Question: {question}\nAnswer:"
    instruction: str = ""
    examples: tuple[WorkedExample, ...] = ()
    format: str = "plain"
    one_line: bool = True

    def __post_init__(self):
        if self.question.count("{question}") != 1 or self.question != self.question.rstrip():
            raise ValueError(
                "the words of a question must contain '{question}' exactly once and end without "
                f"white space (a small LLM reads a trailing space badly), got {self.question!r}."
            )
        if self.format not in FORMATS:
            raise ValueError(
                f"format={self.format!r} is unknown; choose from {', '.join(FORMATS)}."
            )

    @classmethod
    def of(
        cls,
        processor: MemslotsProcessor,
        examples: int = 0,
        format: str | None = None,
        instruction: str | None = None,
        seed: int = 0,
    ) -> Asking:
        """The words that a checkpoint was trained with, and worked examples before them.

        Args:
            processor: the checkpoint's; its `plain_prompt` without white space around, or the chat
                template of its decoder.
            examples: how many worked examples; if there are any, the instruction comes before them.
            format: "plain" or "chat", by default the checkpoint's own.
            instruction: other words than `INSTRUCTION`; empty for none.
            seed: draws the examples.

        Raises:
            ValueError: more examples than there are, or an unknown format.
        """
        chosen = format or processor.prompt_format
        words = processor.plain_prompt.strip() if chosen == "plain" else "{question}"
        told = INSTRUCTION if instruction is None and examples else instruction or ""
        return cls(words, told, worked_examples(examples, seed), chosen)

    def prompts(
        self,
        processor: MemslotsProcessor,
        questions: Sequence[str],
        contexts: Sequence[str | None] | None,
    ) -> list[Prompt]:
        """The decoder's tokens before and after a context.

        Args:
            processor: the checkpoint's.
            questions: the questions to ask.
            contexts: as many texts that stand in the prompt, or None if nothing does; without
                them a memory is to stand between `before` and `after`.
        """
        encode = processor.decoder_text.encode
        control, shown, end = self._around(processor)
        memory_follows = control + before_text(encode, shown)
        prompts = []
        for i, question in enumerate(questions):
            asked = self.question.replace("{question}", question)
            if contexts is None:
                prompts.append(Prompt(memory_follows, encode(BETWEEN + asked) + end))
                continue
            context = contexts[i]
            read = shown + ("" if context is None else context + BETWEEN) + asked
            prompts.append(Prompt([*control, *encode(read), *end]))
        return prompts

    def shown(self) -> str:
        """What plain text shows before the context: instruction and worked examples."""
        shown = self.instruction + BETWEEN if self.instruction else ""
        for example in self.examples:
            asked = self.question.replace("{question}", example.question)
            shown += f"{example.passage}{BETWEEN}{asked} {example.answer}{BETWEEN}"
        return shown

    def _around(self, processor: MemslotsProcessor) -> tuple[list[int], str, list[int]]:
        """Control tokens before everything, the text between them and the context, and the control
        tokens after the question.
        """
        if self.format == "plain":
            return list(processor.bos_ids), self.shown(), []
        messages = [{"role": "system", "content": self.instruction}] if self.instruction else []
        for example in self.examples:
            asked = self.question.replace("{question}", example.question)
            messages.append({"role": "user", "content": example.passage + BETWEEN + asked})
            messages.append({"role": "assistant", "content": example.answer})
        if not processor.tokenizer.chat_template:
            raise ValueError(
                "format='chat' needs a decoder tokenizer with a chat template, and this one has "
                "none; use 'plain'."
            )
        messages.append({"role": "user", "content": _CONTEXT})
        rendered = render_chat(processor.tokenizer, messages)
        head, kept, tail = rendered.partition(_CONTEXT)
        if not kept:
            raise ValueError("the decoder's chat template drops the user's message.")
        # Instruction and examples are this package's own words, so control tokens are the
        # template's; contexts and questions never get any.
        before, after = (
            processor.tokenizer(piece, add_special_tokens=False)["input_ids"] if piece else []
            for piece in (head, tail)
        )
        if before[:1] != processor.bos_ids:
            before = processor.bos_ids + before
        return before, "", after

    def answer_ids(self, processor: MemslotsProcessor, answer: str) -> list[int]:
        """The decoder's tokens of an answer as they follow the question, without an end."""
        return processor.decoder_text.encode(answer if self.format == "chat" else " " + answer)

    def stop_ids(self, processor: MemslotsProcessor) -> list[int]:
        """Tokens that end an answer: the decoder's EOS, and with `one_line` all with a newline."""
        ends = list(processor.eos_ids)
        if self.one_line:
            pieces = processor.tokenizer.convert_ids_to_tokens(range(len(processor.tokenizer)))
            marks = ("\n", "\u010a", "<0x0A>")  # as text, in byte-level BPE, as a byte piece
            ends += [
                i for i, piece in enumerate(pieces) if piece and any(m in piece for m in marks)
            ]
        return sorted(set(ends))

    def cut(self, answer: str) -> str:
        """An answer as it is scored."""
        lines = answer.strip().splitlines() if self.one_line else [answer]
        return lines[0].strip() if lines else ""


def before_text(encode: Callable[[str], list[int]], shown: str) -> list[int]:
    """Tokens of what stands before a context as they are where text follows.

    Two newlines at the end of a text are often another token than before a word, and a decoder
    that has read only the latter is thrown off by the former.
    """
    if not shown:
        return []
    article, preposition = encode(shown + "The"), encode(shown + "In")
    shared = 0
    while shared < min(len(article), len(preposition)) and article[shared] == preposition[shared]:
        shared += 1
    return article[:shared]
