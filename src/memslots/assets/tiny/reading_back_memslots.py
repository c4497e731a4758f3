"""Texts from memories: read back by the decoder, exactly where that was provided for."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from .fidelity_memslots import reading_row
from .lossless_memslots import read_exactly
from .memory_memslots import Memory
from .memory_report_memslots import MemoryReport, report_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Model
else:
    _Model = object

UNCERTAIN = 0.8
"""A token is marked where the decoder gave it less than this probability."""

MARKS = ("⟦", "⟧")
"""What stands around uncertain tokens."""


class ReadingBackMixin(_Model):
    """`reconstruct`, `expand` and `report` of `MemslotsModel`."""

    def reconstruct(
        self, memory: Memory, batch_size: int = 32, exact: bool = False, **generate_kwargs
    ) -> str | list[str]:
        """The text that the decoder reads back from the slots, segment by segment (`<AE>`, eq. 4).

        Args:
            memory: one document or several.
            batch_size: segments that are generated at once.
            exact: whether the text must be the one that was compressed, byte for byte; the memory
                was then made with `compress(..., patches=True)` or `exact=True`.
            generate_kwargs: as in `generate`; greedy by default.

        Returns:
            One string for one document, else a list.

        Raises:
            ValueError: with `exact`, segments whose exact text was not provided for, or that come
                back as another text here.
        """
        self._need_decoder()
        self._check_memory(memory)
        self._check_generate_kwargs(generate_kwargs)
        if exact and generate_kwargs:
            raise ValueError(
                f"exact=True leaves nothing to choose; leave out {sorted(generate_kwargs)}."
            )
        if generate_kwargs.get("return_dict_in_generate"):
            raise ValueError("reconstruct returns text; return_dict_in_generate is for generate.")
        everything = range(len(memory.segments))
        if exact:
            texts = self._exact_texts(memory, everything, batch_size)
        else:
            texts = self._read_back(memory, everything, batch_size, generate_kwargs)
        documents, start = [], 0
        for document in memory.documents:
            documents.append("".join(texts[start : start + len(document)]))
            start += len(document)
        return documents[0] if len(documents) == 1 else documents

    def expand(self, memory: Memory, i: int) -> str:
        """The text of segment `i`, see `Memory.expand`."""
        self._check_memory(memory)
        (i,) = check_segments(memory, [i])
        check = memory.all_checks()[i]
        if check.standalone:
            return memory.expand(i)
        self._need_decoder()
        return self._exact_texts(memory, [i])[0] if check.exact else self._read_marked(memory, i)

    def report(self, memory: Memory, batch_size: int = 32) -> MemoryReport:
        """`memory.report()` with the texts of all segments whose exact text was provided for."""
        self._check_memory(memory)
        report = report_of(memory)
        exact = [i for i, check in enumerate(memory.checks) if check.exact or check.standalone]
        texts = list(report.texts)
        for i, text in zip(exact, self._exact_texts(memory, exact, batch_size), strict=True):
            texts[i] = text
        return MemoryReport(report.segments, tuple(texts), report.marks)

    def expanded(self, memory: Memory, expand: Sequence[int]) -> Memory:
        """The memory, some segments of which are read as text: exact, or as it is read back.

        Args:
            memory: one document or several.
            expand: indices in `memory.segments`.

        Raises:
            ValueError: what are no indices of segments, or what `expand` raises.
        """
        chosen = [i for i in check_segments(memory, expand) if memory.segment_texts[i] is None]
        checks = memory.all_checks()
        exact = [i for i in chosen if checks[i].exact]
        rest = [i for i in chosen if not checks[i].exact]
        if rest:
            warnings.warn(
                f"the exact text of segments {', '.join(map(str, rest[:5]))}"
                f"{' and more' if len(rest) > 5 else ''} was not kept, so what is read in their "
                "place is what the decoder reads back from their slots, mistakes included; "
                "compress with patches=True, or give the text you have: memory.as_text({i: text})",
                stacklevel=3,
            )
        texts = dict(zip(exact, self._exact_texts(memory, exact), strict=True))
        texts.update(zip(rest, self._read_back(memory, rest, 32, {}), strict=True))
        return memory.as_text(texts)

    def _exact_texts(
        self, memory: Memory, chosen: Sequence[int], batch_size: int = 32
    ) -> list[str]:
        checks = memory.all_checks()
        missing = [i for i in chosen if not checks[i].exact and not checks[i].standalone]
        if missing:
            named = ", ".join(map(str, missing[:5])) + (" and more" if len(missing) > 5 else "")
            raise ValueError(
                f"the exact text of segments {named} was not kept, or was made for slots that "
                "have since become coarser; compress the text with patches=True (exact=True "
                "implies it), or use reconstruct(memory) without exact."
            )
        texts = {i: memory.expand(i) for i in chosen if checks[i].standalone}
        patched = [i for i in chosen if i not in texts]
        if patched:
            self._need_decoder()
            texts.update(zip(patched, read_exactly(self, memory, patched, batch_size), strict=True))
        return [texts[i] for i in chosen]

    def _read_back(
        self, memory: Memory, chosen: Sequence[int], batch_size: int, given: dict[str, Any]
    ) -> list[str]:
        """What the decoder writes of each of the `chosen` segments."""
        decoder, processor = self._need_decoder(), self._need_processor()
        texts = dict(enumerate(memory.segment_texts))
        beside = self._beside(memory)
        # Segments of like length end together, and none is cut short or runs far beyond its end.
        order = sorted(
            (i for i in chosen if texts[i] is None), key=lambda i: memory.segments[i].tokens
        )
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            rows = [reading_row(processor, i, [], beside[i]) for i in batch]
            longest = max(memory.segments[i].tokens for i in batch)
            kwargs = {"max_new_tokens": 2 * longest + 16, "do_sample": False, **given}
            kwargs = self._generation_defaults(rows, memory, kwargs)
            output = self._generate_rows(decoder, rows, memory, kwargs)
            for i, ids in zip(batch, output, strict=True):
                texts[i] = processor.decode(ids)
        return [texts[i] or "" for i in chosen]

    @torch.no_grad()
    def _read_marked(self, memory: Memory, i: int) -> str:
        """What the decoder writes of a segment, with what it is not sure of in marks."""
        decoder, processor = self._need_decoder(), self._need_processor()
        rows = [reading_row(processor, i, [], self._beside(memory)[i])]
        given = {
            "max_new_tokens": 2 * memory.segments[i].tokens + 16,
            "do_sample": False,
            "num_beams": 1,
            "return_dict_in_generate": True,
            "output_scores": True,
        }
        kwargs = self._generation_defaults(rows, memory, given)
        output = self._generate_rows(decoder, rows, memory, kwargs)
        ids = output.sequences[0].tolist()[-len(output.scores) :]
        sure = [
            bool(torch.softmax(scores[0].float(), dim=-1)[token] >= UNCERTAIN)
            for token, scores in zip(ids, output.scores, strict=True)
        ]
        return marked(processor, ids, sure)

    if TYPE_CHECKING:

        def _beside(self, memory: Memory) -> list[list[int]]: ...
        def _check_generate_kwargs(self, kwargs: dict[str, Any]) -> None: ...
        def _check_memory(self, memory: Memory) -> None: ...
        def _generate_rows(self, *args: Any) -> Any: ...
        def _generation_defaults(self, *args: Any) -> dict[str, Any]: ...
        def _need_decoder(self) -> Any: ...
        def _need_processor(self) -> Any: ...


def check_segments(memory: Memory, indices: Sequence[int]) -> list[int]:
    """Indices of segments, from 0, each once and in order.

    Raises:
        ValueError: something else than indices of this memory's segments.
    """
    count = len(memory.segments)
    several = isinstance(indices, (list, tuple, range, set))
    given: list[Any] = list(indices) if several else [indices]
    for i in given:
        if type(i) is not int or not -count <= i < count:
            raise ValueError(
                f"expand={given!r}: segments are integers from 0 to {count - 1}, got {i!r}."
            )
    return sorted({i % count for i in given})


def marked(processor, ids: Sequence[int], sure: Sequence[bool]) -> str:
    """The text of tokens, with marks around those that are not sure.

    Args:
        processor: that decodes.
        ids: decoder tokens.
        sure: for each of them.
    """
    text, pending = "", False
    parts: list[tuple[str, bool]] = []
    for n, ok in enumerate(sure, start=1):
        pending = pending or not ok
        whole = processor.decode(ids[:n])
        if whole.endswith("\N{REPLACEMENT CHARACTER}") and n < len(ids):
            continue  # in the midst of a character
        parts.append((whole[len(text) :], not pending))
        text, pending = whole, False
    found, open_mark = "", False
    for piece, ok in parts:
        if piece and ok == open_mark:
            found += MARKS[open_mark]
            open_mark = not open_mark
        found += piece
    return found + (MARKS[1] if open_mark else "")
