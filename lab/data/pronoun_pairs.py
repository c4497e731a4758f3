"""Stand-in for WSC: pairs of sentences about two people, in which one word moves the pronoun.

They are built as Winograd schemas are. Both people take the same pronoun, so that only the sense
of the last words says whom it means, and each sentence comes with its twin, in which it means the
other one. Asked about the same person, the twins have opposite answers: whoever answers without
reading the end is right half of the time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lab.data.personas import distinct_people, personas
from memslots.data.example_sets import WSC_COLUMNS, wsc_row
from memslots.data.schema import Adapter, Layout

# As many rows as SuperGLUE's WSC has.
_ROWS = {"train": 554, "validation": 104}

# The sentence up to the pronoun; the end that makes the pronoun mean a; the one that makes it b.
_SCHEMAS = (
    ("{a} sold {count} {objects} to {b} because", "needed the money.", "collected them."),
    ("{a} could not lift {b} because", "was too weak.", "was too heavy."),
    ("{a} thanked {b} because", "had received so much help.", "had given so much help."),
    ("{a} asked {b} for the way because", "was new in {city}.", "knew {city} so well."),
    ("{a} lent {b} a coat because", "had two of them.", "had forgotten to bring one."),
    ("{a} beat {b} at chess because", "saw every trap.", "walked into every trap."),
    ("{a} envied {b} because", "had lost the race.", "had won the race."),
    ("{a} hired {b} because", "needed a good {profession}.", "was a good {profession}."),
    ("{a} taught {b} {language} because", "spoke it well.", "wanted to learn it."),
    ("{a} apologized to {b} because", "had broken the promise.", "had been treated badly."),
    ("{a} visited {b} in the hospital because", "was worried.", "was a patient there."),
    ("{a} paid {b} for the {objects} because", "wanted to have them.", "wanted to be rid of them."),
    ("{a} could not see the stage behind {b} because", "was so short.", "was so tall."),
    ("{a} called {b} but nobody answered, because", "had the wrong number.", "had gone out."),
)


def _raw_rows(split: str, data_dir: str | Path | None, seed: int) -> Iterator[Mapping[str, Any]]:
    rng = random.Random(f"memslots-pronouns-{split}-{seed}")
    people = personas(split, seed)
    for pair in range(_ROWS[split] // 2):
        first = next(people)
        others = (other for other in people if other.pronoun == first.pronoun)
        a, b = distinct_people(_with(first, others), 2)
        start, *ends = rng.choice(_SCHEMAS)
        asked = rng.choice((a, b))
        facts = {
            "a": a.name,
            "b": b.name,
            "count": a.count,
            "objects": a.objects,
            "city": b.city,
            "profession": b.profession,
            "language": a.languages.partition(" and ")[0],
        }
        for person, end in zip((a, b), ends, strict=True):
            before = start.format(**facts)
            yield {
                "text": f"{before} {a.pronoun} {end.format(**facts)}",
                "span1_text": asked.name,
                "span2_text": a.pronoun,
                "span2_index": len(before.split()),
                "label": int(person is asked),
                "pair": pair,
            }


def _with(first: Any, others: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from others


PRONOUN_PAIRS = Adapter(
    name="pronoun_pairs",
    title="pronoun pairs over personas",
    licence="of this package",
    splits={split: split for split in _ROWS},
    layouts=(Layout(WSC_COLUMNS, wsc_row),),
    generate=_raw_rows,
    stands_for=(
        "stand-in for WSC: generated pairs of sentences about two invented people, not Winograd's"
    ),
)
