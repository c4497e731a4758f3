"""Conversations that begin with a person's biography and go on with small talk.

What a memory of a long chat must do: a fact of the first turn is asked after many turns that say
nothing of it. The turns are composed from lists, so that hardly two conversations share their small
talk, and the split of a turn is a stable hash of its text: turns of the test split are never
trained on. They are written as `ChatMemory` writes them.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator
from typing import Any

from lab.data.personas import SPLITS, persona_rows

MOST_TURNS = 200

_STOCK = tuple(
    "Thank you.|Good.|I see.|Please go on.|That is fine.|Yes, of course.|No, not yet.|All right.|"
    "Very well.|I think so.|Maybe later.|That is right.|Not at all.|Well, why not?|I agree.|"
    "Good morning.|Good night.|Tell me more.|Is that so?|How nice.|What a day.|Never mind.|"
    "You are right.|I am not sure.|Let us see.|One moment, please.|Here you are.|I know.|"
    "That is too bad.|So do I.|Really?|It is nothing.|Of course not.|Perhaps.|As you wish.|"
    "I hope so.|Excuse me.|Go ahead.|What then?|Indeed.".split("|")
)
_OPENINGS = tuple(
    "Well, |Yes, |No, |Then |Today |I think |I heard that |They say that |You know, |And |But |"
    "Perhaps |At last |Sometimes |Of course ".split("|")
)
_SUBJECTS = tuple(
    "the weather|the garden|the river|the old house|the train|the dinner|the music|the letter|"
    "the market|the road|the door|the window|the story|the water|the table|the light|the boat|"
    "the horse|the dog|the bird|the wind|the rain|the fire|the picture|the room|the street|"
    "the tree|the hill|the book|the clock".split("|")
)
_STATES = tuple(
    "is fine|was good|is too old|was very long|looks new|is not ready|was cold|is warm enough|"
    "was lost|is almost over|is quite near|was far away|seems small|is open|was closed|"
    "is white and clean|was rather dark|came too late|is gone|stands still|is there again|"
    "was a pleasure|was a surprise|is easy to find|was hard to see".split("|")
)
_TIMES = tuple(
    " now| this morning| today| at night| again| for once| after all| as always| this time|"
    " in the evening| since yesterday| before dinner".split("|")
)


def small_talk(split: str, rng: random.Random) -> str:
    """A turn that states nothing about anybody.

    Args:
        split: "train", "validation" or "test"; a stock phrase is of all of them.
        rng: draws it.

    Raises:
        ValueError: another split.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {list(SPLITS)}, got {split!r}.")
    if rng.random() < 0.4:
        return rng.choice(_STOCK)
    while True:
        text = rng.choice(("", *_OPENINGS)) + rng.choice(_SUBJECTS) + " " + rng.choice(_STATES)
        text += rng.choice(("", "", *_TIMES)) + rng.choice("....?!")
        text = text[0].upper() + text[1:]
        if _split_of(text) == split:
            return text


def conversation_rows(
    split: str, n: int, turns: int | None = None, seed: int = 0, questions: int = 1
) -> Iterator[dict[str, Any]]:
    """Yields question-answering rows whose context is a conversation.

    Args:
        split: "train", "validation" or "test".
        n: number of rows.
        turns: of each conversation, the biography's one among them; None draws them from 1 to 200,
            short ones as often as long ones on a logarithmic scale.
        seed: another seed gives other rows.
        questions: questions a row, about the person of the first turn.

    Yields:
        What `persona_rows` yields for one person, and `turns`, the list of them.

    Raises:
        ValueError: fewer turns than one, or what `persona_rows` refuses.
    """
    if turns is not None and turns < 1:
        raise ValueError(f"turns must be 1 or more, got {turns}.")
    for number, row in enumerate(persona_rows(split, n, seed=seed, questions=questions)):
        rng = random.Random(f"memslots-conversation-{split}-{seed}-{number}")
        count = turns or round(math.exp(rng.uniform(0, math.log(MOST_TURNS))))
        said = [row["context"], *(small_talk(split, rng) for _ in range(count - 1))]
        yield {**row, "context": written(said), "turns": said}


def written(turns: list[str]) -> str:
    """Turns as one text, in the default format of `ChatMemory`, the user's first."""
    roles = ("User", "Assistant")
    return "".join(f"{roles[i % 2]}: {turn}\n" for i, turn in enumerate(turns))


def _split_of(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return {0: "test", 1: "validation"}.get(digest[0] % 10, "train")
