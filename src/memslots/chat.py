"""ChatMemory: a chat whose old turns are read as slots.

The last turns are read as they were written. Turns that leave that window wait, still as text,
until they fill a block; the block is then compressed, once, and never read as text again. So the
prompt grows by `1 / rate` of a token for each old token (and two markers a block) instead of by
one, and what is read as text has a bound of its own: the window and one block. With
`max_positions`, the memory's share has a bound too: it is made coarser, where the compressor allows
that without encoding again, and then loses its oldest blocks.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memslots.modeling import Memory, MemslotsModel, MemslotsProcessor
from memslots.modeling.decoders_memslots import check_generate_kwargs
from memslots.modeling.layout_memslots import Prompt, Row
from memslots.modeling.layout_memslots import max_positions as positions_of
from memslots.modeling.texts_memslots import Detectors, check_detectors, check_text

FORMAT = "memslots.chat"
FORMAT_VERSION = 1
CHAT_FILE = "chat.json"
ROLES = ("user", "assistant")


@dataclass(frozen=True)
class Turn:
    """One message.

    Args:
        role: "user" or "assistant".
        content: its text.
    """

    role: str
    content: str


class ChatMemory:
    """A chat of any length for a decoder with a limited context.

    Args:
        model: a `MemslotsModel` with its decoder.
        keep_last: turns that are always read as text.
        rate: encoder tokens per slot, by default the finest.
        block_tokens: encoder tokens of old turns that are compressed together; 0 compresses each
            turn by itself, as it leaves the window. By default one segment, or 0 if slots are
            those of sentences.
        max_positions: most prompt tokens of the memory; None sets no limit.
        literals: verbatim tokens beside the slots, see `MemslotsModel.compress`.
        system: a system message, never compressed: first in a chat template, after the memory in
            plain prompts.
        turn_format: text of a turn, with `{content}` and, if wanted, `{role}` in it.

    Raises:
        ValueError: numbers or a rate that cannot be, or a format without `{content}`.
    """

    def __init__(
        self,
        model: MemslotsModel,
        keep_last: int = 4,
        rate: int | None = None,
        block_tokens: int | None = None,
        max_positions: int | None = None,
        literals: Detectors | None = None,
        system: str | None = None,
        turn_format: str = "{role}: {content}\n",
    ):
        for name, value, least in (
            ("keep_last", keep_last, 0),
            ("block_tokens", block_tokens, 0),
            ("max_positions", max_positions, 3),
        ):
            optional = value is None and name != "keep_last"
            if not optional and (type(value) is not int or value < least):
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")
        if check_text(turn_format, "turn_format").count("{content}") != 1:
            raise ValueError(f"turn_format must contain '{{content}}' once, got {turn_format!r}.")
        check_detectors(literals)
        self.model = model
        self.keep_last = keep_last
        self.rate = model.processor.check_rate(rate)
        if block_tokens is None:
            block_tokens = 0 if model.config.pooling == "sentence" else model.config.segment_length
        self.block_tokens = block_tokens
        self.max_positions = max_positions
        self.literals = literals
        self.system = None if system is None else check_text(system, "system")
        self.turn_format = turn_format
        self.memory: Memory | None = None
        self.turns: list[Turn] = []
        """Those that are read as text: what waits for its block to fill, then the window."""
        self.compressed_turns = 0
        self.forgotten_blocks = 0
        self._turn_tokens: list[int] = []

    def __len__(self) -> int:
        """Turns added so far."""
        return self.compressed_turns + len(self.turns)

    def __repr__(self) -> str:
        return (
            f"ChatMemory({len(self)} turns, {self.compressed_turns} of them compressed: "
            f"{self.memory!r}; {self.positions} prompt tokens)"
        )

    def add(self, role: str, content: str) -> None:
        """Add a turn; what leaves the window and fills a block is compressed.

        Raises:
            ValueError: an unknown role, or a text that is empty or of which the encoder's tokenizer
                keeps nothing.

        Examples:
            >>> chat = ChatMemory(model, keep_last=1, rate=4)
            >>> chat.add("user", "Ann owns 27 maps.")
            >>> len(chat)
            1
        """
        if role not in ROLES:
            raise ValueError(f"role must be one of {list(ROLES)}, got {role!r}.")
        self.turns.append(Turn(role, check_text(content, "content")))
        try:
            self._fill()
        except BaseException:  # as it was, so that the turn may be added again
            if self.turns and self.turns[-1].content is content:
                self.turns.pop()
            del self._turn_tokens[len(self.turns) :]
            raise

    def _fill(self) -> None:
        """Compress what has left the window, if it fills a block."""
        for turn in self.turns[len(self._turn_tokens) :]:  # each turn's tokens are counted once
            self._turn_tokens.append(self._tokens(turn, needed=turn is self.turns[-1]))
        old = len(self.turns) - self.keep_last
        if old > 0 and sum(self._turn_tokens[:old]) >= self.block_tokens:
            self._compress(old)

    def _tokens(self, turn: Turn, needed: bool = False) -> int:
        """Encoder tokens of a turn; a block of turns without any could not be compressed."""
        tokens = len(self._processor.encoder_text.encode(self._text(turn)))
        if needed and not tokens:
            raise ValueError(
                f"the encoder's tokenizer drops all of the {turn.role}'s {turn.content!r}; leave "
                "this turn out."
            )
        return tokens

    def ask(self, question: str, remember: bool = True, **generate_kwargs: Any) -> str:
        """Answer from the memory, the last turns and the question.

        Args:
            question: the user's turn.
            remember: whether question and answer become turns of the chat.
            generate_kwargs: as for `MemslotsModel.generate`.

        Raises:
            ValueError: an empty question, refused arguments, or more tokens than the decoder
                reads.

        Examples:
            >>> isinstance(ChatMemory(model).ask("Who are you?", max_new_tokens=2), str)
            True
        """
        settings = check_generate_kwargs(generate_kwargs)
        if settings.get("return_dict_in_generate"):
            raise ValueError("ask returns text; return_dict_in_generate is for generate.")
        model = self.model
        if (settings.get("num_return_sequences") or 1) > 1:
            raise ValueError(
                "ask gives one answer, which becomes a turn; for num_return_sequences call "
                "model.generate(memory=chat.memory, question=...)."
            )
        row = self._row(question)
        if remember:
            self._tokens(Turn("user", question), needed=True)
        limit = positions_of(model.decoder.config)
        needed = self._length(row) + (settings.get("max_new_tokens") or 1)
        if limit is not None and needed > limit:
            raise ValueError(
                f"memory, recent turns and question need {needed} tokens with the answer, and "
                f"the decoder has {limit}; use a coarser rate, a smaller keep_last, or give "
                "max_positions."
            )
        if self._processor.answer_end and "stop_strings" not in settings:
            generate_kwargs["stop_strings"] = self._processor.answer_end
        (answer, *_) = model.answer_rows([row], self.memory, 1, generate_kwargs)
        if remember:
            self.add("user", question)
            if answer.strip() and self._tokens(Turn("assistant", answer)):
                self.add("assistant", answer)
        return answer

    @property
    def positions(self) -> int:
        """Prompt tokens that the chat takes: the memory, and the turns that are text."""
        row = self._row("?")
        return self._length(row) - len(self._processor.prompt(question="?").after)

    @property
    def _processor(self) -> MemslotsProcessor:
        return self.model.processor

    def _text(self, turn: Turn) -> str:
        # Not str.format: braces in a turn are text.
        return self.turn_format.replace("{role}", turn.role.capitalize()).replace(
            "{content}", turn.content, 1
        )

    def _row(self, question: str) -> Row:
        processor = self._processor
        if processor.prompt_format == "chat":
            messages: list[dict[str, Any]] = []
            if self.system is not None:
                messages.append({"role": "system", "content": self.system})
            if self.turns and self.turns[0].role == "assistant":
                # Most templates want a user first: the older chat, which is the memory.
                messages.append({"role": "user", "content": [{"type": "memory"}]})
            for turn in (*self.turns, Turn("user", question)):
                messages.append({"role": turn.role, "content": turn.content})
            prompt = processor.prompt(messages=messages)
        else:
            texts = [*map(self._text, self.turns)]
            if self.system is not None:
                texts.insert(0, f"{self.system}\n")
            recent = "".join(texts).strip() or None
            prompt = processor.prompt(question=question, context=recent)
        if self.memory is None:
            return Row([], Prompt(prompt.before + prompt.after))
        return self.model.memory_rows(self.memory, [(0, prompt)])[0]

    def _length(self, row: Row) -> int:
        slots = [] if self.memory is None else [s.slots for s in self.memory.segments]
        return self._processor.row_length(row, slots)

    # -- old turns -------------------------------------------------------------------------------

    def _compress(self, old: int) -> None:
        text = "".join(map(self._text, self.turns[:old]))
        rate = self.rate if self.memory is None else self.memory.rate
        new = self.model.compress(text, rate=rate, literals=self.literals, progress=False)
        if self.memory is None:
            self.memory = new
        else:
            self.memory = Memory.cat([self.memory, new]).join()
        self.compressed_turns += old
        self.turns, self._turn_tokens = self.turns[old:], self._turn_tokens[old:]
        if self.max_positions is not None:
            self._shrink(self.memory, self.max_positions)

    def _shrink(self, memory: Memory, most: int) -> None:
        """Keep the memory within `most` prompt tokens: first coarser, then without its oldest."""
        while self.model.memory_positions(memory)[0] > most:
            coarser = [r for r in memory.rates if r > memory.rate and memory.coarsens_to(r)]
            if coarser:
                memory = memory.at_rate(coarser[0])
                continue
            if len(memory.segments) == 1:
                break  # the newest block alone is more than was allowed; it is not thrown away
            memory = without_oldest(memory)
            self.forgotten_blocks += 1
        self.memory = memory

    # -- disk ------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike) -> None:
        """Write the chat to a folder, made if missing; a chat that is there is replaced whole.

        Several may save and load at once: the last to finish is what stays. Each deletes
        only the file of the chat that it found, so savers that overlap may leave files unused.

        Raises:
            OSError: it cannot be written, as on a full disk; the chat that is there stays.
            ValueError: verbatim tokens that are found by a function, which cannot be written.

        Examples:
            >>> ChatMemory(model, keep_last=1).save(folder / "chat")
        """
        check_detectors(self.literals, names_only=True)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        earlier = _memory_of(folder)
        written: list[str] = []
        try:
            if self.memory is not None:
                # A new name, so that the old chat stays readable until its file is replaced.
                handle, path = tempfile.mkstemp(dir=folder, prefix="memory-", suffix=".safetensors")
                written.append(path)
                os.close(handle)
                self.memory.save(path)
            handle, partial = tempfile.mkstemp(dir=folder, prefix=".chat.")
            written.append(partial)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                name = None if self.memory is None else Path(path).name
                json.dump(self._state(name), file, ensure_ascii=False, indent=1)
            os.replace(partial, folder / CHAT_FILE)
        except BaseException:
            for left in written:
                Path(left).unlink(missing_ok=True)
            raise
        if earlier is not None:
            earlier.unlink(missing_ok=True)

    def _state(self, memory: str | None) -> dict[str, Any]:
        """What `chat.json` holds; `memory` is the name of the memory's file."""
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "keep_last": self.keep_last,
            "rate": self.rate,
            "block_tokens": self.block_tokens,
            "max_positions": self.max_positions,
            "literals": self.literals,
            "system": self.system,
            "turn_format": self.turn_format,
            "turns": [[turn.role, turn.content] for turn in self.turns],
            "compressed_turns": self.compressed_turns,
            "forgotten_blocks": self.forgotten_blocks,
            "memory": memory,
        }

    @classmethod
    def load(cls, folder: str | os.PathLike, model: MemslotsModel) -> "ChatMemory":
        """Read a chat that `save` wrote; `model` must be the compressor that it was held with.

        Raises:
            FileNotFoundError: no chat there.
            ValueError: no chat of this format, or another compressor's.

        Examples:
            >>> ChatMemory(model, keep_last=1).save(folder / "chat")
            >>> ChatMemory.load(folder / "chat", model).keep_last
            1
        """
        path = Path(folder) / CHAT_FILE
        if not path.is_file():
            raise FileNotFoundError(f"there is no chat at {str(path)!r}.")
        try:
            state = json.loads(path.read_text("utf-8"))
            written = state["format"], state["version"]
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{str(path)!r} is not a chat that memslots saved ({error})."
            ) from error
        if written != (FORMAT, FORMAT_VERSION):
            raise ValueError(
                f"{str(path)!r} has format {written[0]} version {written[1]}; this memslots reads "
                f"{FORMAT} version {FORMAT_VERSION}."
            )
        settings: Sequence[str] = (
            "keep_last", "rate", "block_tokens", "max_positions", "literals", "system",
            "turn_format",
        )  # fmt: skip
        try:
            chat = cls(model, **{name: state[name] for name in settings})
            turns = [(role, check_text(content, "a turn")) for role, content in state["turns"]]
            chat.turns = [Turn(ROLES[ROLES.index(role)], content) for role, content in turns]
            chat.compressed_turns = int(state["compressed_turns"])
            chat.forgotten_blocks = int(state["forgotten_blocks"])
            named = state["memory"] and path.parent / Path(state["memory"]).name
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{str(path)!r} holds no chat that was saved ({error}).") from error
        if named:
            try:
                chat.memory = model.load_memory(named)
            except FileNotFoundError:
                if _memory_of(path.parent) in (None, named):  # None: not named as `save` does
                    raise
                return cls.load(folder, model)  # it was saved again since
        return chat


def without_oldest(memory: Memory) -> Memory:
    """A single document without its first segment."""
    return replace(
        memory,
        slots=memory.slots[memory.segments[0].slots :],
        documents=(memory.segments[1:],),
    )[0]


def _memory_of(folder: Path) -> Path | None:
    """The memory's file that the chat in `folder` names; None without such a chat."""
    try:
        path = folder / Path(json.loads((folder / CHAT_FILE).read_text("utf-8"))["memory"]).name
    except (FileNotFoundError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return path if path.match("memory-*.safetensors") else None  # `save` deletes it
