"""Stand-in for HPD: dialogue of the character who speaks most in each of some books.

Speech is what stands between double quotation marks; its speaker is whom the narration names
right beside it ("said Elizabeth", "Mr. Darcy replied:"). Of the replies only such are taken. Lines
whose speaker is not named are somebody's: the usual guess, that two people take turns, is often
wrong once a third is in the room.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memslots.data.books import iterate_books
from memslots.data.example_sets import dialogue_row
from memslots.data.raw_rows import hub_rows
from memslots.data.schema import Adapter, DataNotFound, Layout
from memslots.data.text_sets import PG19

SOMEONE = "Someone"
_HISTORY = 8  # lines before the reply
_NARRATION = 2  # paragraphs without speech that end a dialogue
_SCENE_CHARACTERS = 600

_SPEECH = re.compile(r"“([^“”]*)(”|$|(?=“))|\"([^\"]*)(\"|$)")
_VERB = (
    "(?:said|says|replied|answered|asked|cried|exclaimed|returned|repeated|inquired|enquired|"
    "observed|remarked|whispered|murmured|muttered|shouted|continued|added|began|resumed|demanded|"
    "called|retorted|rejoined|responded|interposed|interrupted|declared|growled|suggested)"
)
_TITLE = (
    r"(?:(?:Mr|Mrs|Dr|St|M)\.? |(?:Miss|Sir|Lady|Lord|Madame|Mademoiselle|Monsieur|Captain|Colonel"
    r"|Doctor|Professor|Uncle|Aunt|Father|Sister|Brother) )"
)
_WORD = r"[A-Z][\w’'-]*[a-z]"
_NAME = rf"((?:the )?{_TITLE}?{_WORD}(?: {_WORD}){{0,2}})"
_AFTER_SPEECH = re.compile(rf"^[\s,.;-]*(?:{_VERB} {_NAME}|{_NAME} {_VERB})\b")
_BEFORE_SPEECH = re.compile(rf"{_NAME} (?:\w+ly )?{_VERB}\b[^.!?;]*[,:]\s*$")
_NO_NAMES = frozenset(
    "He She I It They We You The But And Then So That This These Those There Here Now When What "
    "Who Why How One Nobody Everybody Somebody Both All Not No Yes At In On For If As His Her My "
    "Their Our Your A An Or Yet Presently Again Still Only After Before Once".split()
)


@dataclass
class _Turn:
    """What one person says at a time, and in which paragraph it begins and ends."""

    speaker: str | None
    text: str
    first: int
    last: int
    open: bool  # the quotation goes on in the next paragraph


def _raw_rows(split: str, data_dir: str | Path | None, seed: int) -> Iterator[Mapping[str, Any]]:
    books_split = {"train": "train", "test": "validation"}[split]
    folder = Path(data_dir) if data_dir is not None else None
    if folder is not None and folder.is_dir() and not any(folder.glob(f"books-{books_split}*")):
        raise DataNotFound(
            f"data_dir={str(data_dir)!r} holds no books-{books_split}*.jsonl (also with .gz); put "
            f"books there, one JSON object with a `text` field a line, or leave data_dir out to "
            f"take PG-19 from the Hub."
        )
    if folder is not None:
        books = iterate_books(folder, books_split)
    else:  # through the adapter, so that an unreachable Hub is found out now
        rows = hub_rows(PG19, books_split, streaming=True)()
        books = (row["text"] for row in rows if isinstance(row, Mapping))
    return (
        session
        for number, book in enumerate(books)
        for session in book_sessions(book, f"{books_split}-{number}")
    )


def book_sessions(book: str, book_id: str) -> Iterator[Mapping[str, Any]]:
    """Yields a session in HPD's layout for each reply of the character who speaks most.

    Args:
        book: Its text; paragraphs are separated by blank lines.
        book_id: Begins the sessions' names.
    """
    paragraphs = [" ".join(each.split()) for each in re.split(r"\n\s*\n", book)]
    dialogues = _dialogues(paragraphs)
    spoken = Counter(turn.speaker for turns in dialogues for turn in turns if turn.speaker)
    if not spoken:
        return
    character = spoken.most_common(1)[0][0]
    for turns in dialogues:
        for number in range(1, len(turns)):
            reply, asked = turns[number], turns[number - 1]
            if reply.speaker != character or asked.speaker == character:
                continue
            shown = turns[max(0, number - _HISTORY) : number + 1]
            yield {
                "session": f"{book_id}-{reply.first}",
                "position": f"book {book_id}, paragraph {reply.first}",
                "speakers": sorted({turn.speaker or SOMEONE for turn in shown}),
                "scene": _scene(paragraphs, turns[0].first),
                "dialogue": [f"{turn.speaker or SOMEONE}: {turn.text}" for turn in shown],
                "character": character,
            }


def _dialogues(paragraphs: list[str]) -> list[list[_Turn]]:
    dialogues: list[list[_Turn]] = []
    for number, paragraph in enumerate(paragraphs):
        turn = _turn(paragraph, number)
        if turn is None:
            continue
        last = dialogues[-1][-1] if dialogues else None
        if last is None or number - last.last > _NARRATION:
            dialogues.append([turn])
        elif last.open and last.last == number - 1:
            last.text = f"{last.text} {turn.text}"
            last.speaker = last.speaker or turn.speaker
            last.last, last.open = number, turn.open
        else:
            dialogues[-1].append(turn)
    return dialogues


def _turn(paragraph: str, number: int) -> _Turn | None:
    quotations = list(_SPEECH.finditer(paragraph))
    texts = [(found[1] or found[3] or "").strip() for found in quotations]
    if not any(texts):
        return None
    speaker = None
    for i, found in enumerate(quotations):
        until = quotations[i + 1].start() if i + 1 < len(quotations) else len(paragraph)
        since = quotations[i - 1].end() if i else 0
        named = _AFTER_SPEECH.search(paragraph[found.end() : until])
        named = named or _BEFORE_SPEECH.search(paragraph[since : found.start()])
        speaker = _known(next((name for name in named.groups() if name), "")) if named else None
        if speaker:
            break
    closing = quotations[-1][2] or quotations[-1][4]
    return _Turn(speaker, " ".join(filter(None, texts)), number, number, open=not closing)


def _known(name: str) -> str | None:
    return None if name.removeprefix("the ").split(" ")[0] in _NO_NAMES else name


def _scene(paragraphs: list[str], first: int) -> str:
    """The paragraph before the dialogue, from a sentence's beginning where it is long."""
    scene = paragraphs[first - 1] if first else ""
    if len(scene) > _SCENE_CHARACTERS:
        scene = scene[-_SCENE_CHARACTERS:].partition(". ")[2]
    return scene


CHARACTER_DIALOGUE = Adapter(
    name="character_dialogue",
    title="dialogue of books' characters",
    licence="that of the books",
    splits={"train": "train", "test": "validation"},
    layouts=(Layout(("session", "character", "dialogue"), dialogue_row),),
    generate=_raw_rows,
    stands_for=(
        "stand-in for HPD: replies of the character who speaks most in each book, found by their "
        "quotation marks, not Harry Potter's"
    ),
)
