"""The page of verified memory, docs/verified.md, from what `verified.py` measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from memslots.evaluation.intervals import with_interval

Record = dict[str, Any]


def share(records: Sequence[Record], key: str) -> str:
    """A mean with its interval, in percent."""
    found = with_interval([float(record[key]) for record in records])
    return f"{100 * found['value']:.1f} ({100 * found['low']:.1f} to {100 * found['high']:.1f})"


def effective_rate(records: Sequence[Record]) -> float:
    """Encoder tokens a decoder position."""
    return sum(r["tokens"] for r in records) / sum(r["positions"] for r in records)


def page(results: dict[str, list[Record]]) -> str:
    """docs/verified.md."""
    out = [HEAD]
    strings = results["strings"]
    names = list(dict.fromkeys(r["way"] for r in strings))
    kinds = list(dict.fromkeys(r["kind"] for r in strings))
    places = list(dict.fromkeys(r["hidden_in"] for r in strings))
    out += [
        "## Exact strings\n",
        STRINGS,
        "| way | " + " | ".join(kinds) + " | all kept, % | answered, % | effective rate |",
        "|---" * (len(kinds) + 4) + "|",
    ]
    for name in names:
        own = [r for r in strings if r["way"] == name]
        cells = [
            f"{100 * statistics.mean(r['kept'] for r in own if r['kind'] == kind):.0f}"
            for kind in kinds
        ]
        out.append(
            f"| {name} | {' | '.join(cells)} | {share(own, 'kept')} | "
            f"{share(own, 'answered')} | {effective_rate(own):.2f} |"
        )
    out += [
        "\nKept by depth (start / middle / end), %, and effective rate, by what the string is "
        "hidden in:\n",
        "| way | " + " | ".join(places) + " |",
        "|---" * (len(places) + 1) + "|",
    ]
    for name in names:
        cells = []
        for place in places:
            own = [r for r in strings if r["way"] == name and r["hidden_in"] == place]
            depths = sorted({r["depth"] for r in own})
            kept = [statistics.mean(r["kept"] for r in own if r["depth"] == d) for d in depths]
            shares = " / ".join(f"{100 * value:.0f}" for value in kept)
            cells.append(f"{shares}, at {effective_rate(own):.2f}")
        out.append(f"| {name} | {' | '.join(cells)} |")
    out += ["\n" + TRAINED, *_answered(results["strings_after_training"], kinds)]
    out += [
        "\n## Questions about a person\n",
        "| way | numbers right, % | others right, % | effective rate |",
        "|---|---|---|---|",
    ]
    answers = results["questions"]
    for name in dict.fromkeys(r["way"] for r in answers):
        own = [r for r in answers if r["way"] == name]
        out.append(
            f"| {name} | {share([r for r in own if r['number']], 'right')} | "
            f"{share([r for r in own if not r['number']], 'right')} | {effective_rate(own):.2f} |"
        )
    out += [
        "\n## Tokens lost at equal positions\n",
        LOSSES,
        "| texts | tokens | lost at rate 8, % | "
        "lost by the budget, % | ratio | lost by a cut, % | lost at fidelity asked, % | "
        "segments left as text | positions against rate 8 |",
        "|---" * 9 + "|",
    ]
    for name in dict.fromkeys(r["set"] for r in results["losses"]):
        own = [r for r in results["losses"] if r["set"] == name]
        total = {k: sum(r[k] for r in own) for k in own[0] if k != "set"}
        cut = sum(max(0, r["tokens"] - r["positions"]) for r in own)
        ratio = with_interval(
            own, lambda rs: sum(r["budget"] for r in rs) / max(1, sum(r["fixed"] for r in rs))
        )
        out.append(
            f"| {name} | {total['tokens']} | {100 * total['fixed'] / total['tokens']:.1f} | "
            f"{100 * total['budget'] / total['tokens']:.1f} | {ratio['value']:.2f} "
            f"({ratio['low']:.2f} to {ratio['high']:.2f}) | {100 * cut / total['tokens']:.1f} | "
            f"{100 * total['served'] / total['tokens']:.1f} | {total['as_text']} of "
            f"{total['segments']} | {total['served_positions'] / total['positions']:.2f} |"
        )
    out += ["\n## What verification costs\n", COST]
    for measured in ("texts", "shapes"):
        found = [r for r in results["cost"] if r["measured"] == measured]
        rates = sorted({r["rate"] for r in found})
        out += [
            f"| {measured} | " + " | ".join(f"rate {rate}" for rate in rates) + " |",
            "|---" * (len(rates) + 1) + "|",
        ]
        for name in dict.fromkeys(r["set"] for r in found):
            cells = []
            for rate in rates:
                own = [r["ratio"] for r in found if r["set"] == name and r["rate"] == rate]
                cells.append(f"{statistics.median(own):.2f}")
            out.append(f"| {name} | {' | '.join(cells)} |")
        out.append("")
    return "\n".join([*out, bars(results)])


def _answered(records: Sequence[Record], kinds: Sequence[str]) -> list[str]:
    """A table of the strings answered by kind, a row a way."""
    out = ["| way | " + " | ".join(kinds) + " | all answered, % |", "|---" * (len(kinds) + 2) + "|"]
    for name in dict.fromkeys(r["way"] for r in records):
        own = [r for r in records if r["way"] == name]
        cells = [
            f"{100 * statistics.mean(r['answered'] for r in own if r['kind'] == kind):.0f}"
            for kind in kinds
        ]
        out.append(f"| {name} | {' | '.join(cells)} | {share(own, 'answered')} |")
    return out


def bars(results: dict[str, list[Record]]) -> str:
    """Whether what was aimed at was reached, said plainly."""
    strings = [r for r in results["strings"] if r["way"] == "rate 16, exact spans"]
    fixed = statistics.mean(r["kept"] for r in results["strings"] if r["way"] == "fixed rate 16")
    answered = statistics.mean(r["answered"] for r in strings)
    by_text = []
    for place in dict.fromkeys(r["hidden_in"] for r in strings):
        own = [r for r in strings if r["hidden_in"] == place]
        kept, rate = statistics.mean(r["kept"] for r in own), effective_rate(own)
        reached = "reached" if kept >= 0.99 and rate >= 8 else "missed"
        by_text.append(f"{100 * kept:.1f}% at {rate:.2f} in {place} ({reached})")
    losses = results["losses"]
    ratio = sum(r["budget"] for r in losses) / sum(r["fixed"] for r in losses)
    costs = []
    for measured, what in (("texts", "this checkpoint"), ("shapes", "the larger decoder")):
        own = [r["ratio"] for r in results["cost"] if r["measured"] == measured]
        median = statistics.median(own)
        reached = "reached" if median <= 1 else "missed"
        costs.append(f"{what} {median:.2f} in the median ({reached}), {max(own):.2f} at worst")

    def said(reached: bool) -> str:
        return "reached" if reached else "missed"

    return "\n".join(
        [
            "## The bars\n",
            "- Exact strings at an effective rate of 8, at least 99%: at rate 16 with exact spans "
            f"{'; '.join(by_text)}. Fixed rate 16 keeps {100 * fixed:.1f}%. What an exact span "
            "costs is its own tokens, so it is the texts with few numbers where the rate stays "
            f"high. Where it is kept so, the decoder answers with {100 * answered:.1f}% of them.",
            "- At equal positions, per-segment rates lose at most half of what the fixed rate "
            f"loses: they lose {ratio:.2f} of it ({said(ratio <= 0.5)}).",
            "- Verification costs at most one prefill of the text for each rate tried: "
            f"{'; '.join(costs)}. Short texts at fine rates cost more than one, since slots and "
            "text are more positions than the text.",
            "",
        ]
    )


HEAD = """# Verified memory, measured

Written by `make tables-verified`, with the checkpoint inside the package: a decoder of 2.2 million
parameters that was trained on biographies, on a CPU in float32. Intervals are 95% bootstraps over
texts. Effective rate: encoder tokens a decoder position, markers, literals and text included.

So small a checkpoint reads back what it was trained on, one biography, and little else: other
segments end as text, and no budget of slots saves them. It was trained with numbers
beside its slots in some contexts, but not to answer with strings that it never saw: what is kept is
there to be read, but this decoder does not answer with it.
"""
TRAINED = """*Answered* after the recipe `exact_strings`: the decoder goes on training with such
strings, the compressor with literals beside its slots, each for some twenty-five minutes. The row
"full text" is what that decoder does without compression. Its other answers suffer from having been
moved, so the package does not carry this checkpoint. Values and places are none of the training's,
the sentence that states them is.
"""
STRINGS = """A string is *kept* where it stands in what the decoder reads as tokens (literals,
segments left as text) or in what it reads back from the slots. *Answered*: the string stands in its
answer to the question for it. *Text cut to* a way: the first tokens of the text, as many as that
way takes positions; ways that leave most as text take about as many as the full text. Names are
found by a function of the user's, the others by the kinds "numbers" and "identifiers".
"""
LOSSES = """Decoder tokens that do not come back, teacher-forced. The budget has as many slots as
rate 8 takes. A cut: the text's first tokens, as many as rate 8 takes positions; the rest is lost.
The last columns ask for a fidelity of 0.85 instead and may leave text. Letters: three stock
paragraphs, a biography and small talk.
"""
COST = """Seconds of checking all segments at one rate, by those of one prefill of the same text
through the same decoder (medians of three, in turns): this checkpoint on the texts above, and a
larger decoder of random weights (the preset `small` of benchmarks/shapes.py) by length. The prefill
computes the logits of one token, checking those of all; a segment attends to itself alone, the
prefill to all that was before.
"""
