"""Where crammed texts go wrong: by place in the text, by frequency and by kind of token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from memslots.cramming.reading import Reading

_PIECE_OF_A_NEW_WORD = ("Ġ", "▁", " ")
_RANKS = (10, 100, 1000)


def token_kind(tokenizer: Any, index: int) -> str:
    """What a token is: `number`, `word start`, `word part`, `punctuation`, `white space`, `other`.

    Args:
        tokenizer: of transformers.
        index: token id.
    """
    text = tokenizer.decode([index])
    bare = text.strip()
    if not bare:
        return "white space"
    if any(character.isdigit() for character in bare):
        return "number"
    if any(character.isalpha() for character in bare):
        piece = tokenizer.convert_ids_to_tokens(index)
        return "word start" if piece.startswith(_PIECE_OF_A_NEW_WORD) else "word part"
    return "other" if "\ufffd" in bare else "punctuation"


def place(index: int, length: int) -> str:
    """The first token by itself, the others by the quarter of the text that they stand in."""
    return "token 1" if index == 0 else f"quarter {min(3, 4 * index // length) + 1}"


def frequency_band(index: int, ranks: Mapping[int, int]) -> str:
    """A token's rank among the reference's tokens, in powers of ten.

    Args:
        index: token id.
        ranks: 1 for the most frequent; what is missing never occurred.
    """
    rank = ranks.get(index)
    if rank is None:
        return "not seen"
    low = 1
    for high in _RANKS:
        if rank <= high:
            return f"rank {low} to {high}"
        low = high + 1
    return f"rank over {_RANKS[-1]}"


def error_patterns(
    readings: Sequence[Reading], tokenizer: Any, reference: Iterable[int]
) -> dict[str, Any]:
    """Counts tokens and errors of readings, grouped three ways.

    Args:
        readings: of crammed texts.
        tokenizer: the decoder's.
        reference: token ids of other text, for frequencies.

    Returns:
        `position`, `frequency` and `kind`: for each group `tokens`, `wrong` (teacher-forced),
        `free_wrong` (free-running); and `wrong_from_text`, of the teacher-forced wrong tokens
        those that stand elsewhere in the text.
    """
    counted = Counter(reference)
    ranks = {index: rank for rank, (index, _) in enumerate(counted.most_common(), 1)}
    tables: dict[str, dict[str, dict[str, int]]] = {"position": {}, "frequency": {}, "kind": {}}
    from_text = wrong = 0
    for reading in readings:
        inside = set(reading.ids)
        outcomes = zip(reading.ids, reading.predicted, reading.produced, strict=True)
        for at, (index, predicted, produced) in enumerate(outcomes):
            groups = {
                "position": place(at, len(reading.ids)),
                "frequency": frequency_band(index, ranks),
                "kind": token_kind(tokenizer, index),
            }
            for table, group in groups.items():
                cell = tables[table].setdefault(group, {"tokens": 0, "wrong": 0, "free_wrong": 0})
                cell["tokens"] += 1
                cell["wrong"] += predicted != index
                cell["free_wrong"] += produced != index
            wrong += predicted != index
            from_text += predicted != index and predicted in inside
    sorted_tables: dict[str, Any] = {
        name: dict(sorted(groups.items())) for name, groups in tables.items()
    }
    return {**sorted_tables, "wrong": wrong, "wrong_from_text": from_text}
