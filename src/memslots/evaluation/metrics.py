"""Exact match, SQuAD's scores, BLEU, ROUGE, tokens right of a reconstruction, and intervals.

BLEU, ROUGE and SQuAD's normalisation are libraries' (sacrebleu, rouge-score, torchmetrics), called
with the settings that the tables state.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher


def exact_match(answer: str, expected: str) -> bool:
    """Whether the answer is the expected one, apart from white space around it."""
    return answer.strip() == expected.strip()


def squad_scores(answer: str, accepted: Sequence[str]) -> dict[str, float]:
    """SQuAD's `f1` and `exact_match`, 0 to 1, the best over the accepted answers.

    Case, punctuation, articles and white space do not count (Rajpurkar et al. 2016).
    """
    from torchmetrics.functional.text import squad

    scores = squad(
        [{"prediction_text": answer, "id": "1"}],
        [{"answers": {"answer_start": [0] * len(accepted), "text": list(accepted)}, "id": "1"}],
    )
    return {name: float(scores[name]) / 100 for name in ("f1", "exact_match")}


def bleu_counts(produced: str, reference: str) -> list[int]:
    """What sacrebleu counts of one sample: lengths, then n-grams matched and n-grams, by order.

    A corpus' counts are the sums of its samples', so an interval's resamples count nothing again.
    """
    from sacrebleu.metrics import BLEU

    score = BLEU().corpus_score([produced], [[reference]])
    return [score.sys_len, score.ref_len, *score.counts, *score.totals]


def bleu_of_counts(counts: Sequence[Sequence[int]]) -> float:
    """Corpus BLEU, 0 to 100, of samples by their `bleu_counts`: sacrebleu's defaults (13a, exp)."""
    from sacrebleu.metrics import BLEU

    produced, reference, *ngrams = (sum(column) for column in zip(*counts, strict=True))
    matched, total = ngrams[:4], ngrams[4:]
    return BLEU.compute_bleu(matched, total, produced, reference, smooth_method="exp").score


def rouge_l(produced: str, reference: str) -> float:
    """F1 of ROUGE-L, 0 to 100, without stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    return 100 * RougeScorer(["rougeL"]).score(reference, produced)["rougeL"].fmeasure


def tokens_right(reference: Sequence[int], produced: Sequence[int]) -> list[bool]:
    """For each reference token, whether the same token stands at its position.

    One token too many or too few makes all that follow wrong; see `tokens_aligned`.
    """
    shared = [a == b for a, b in zip(reference, produced, strict=False)]
    return shared + [False] * (len(reference) - len(shared))


def tokens_aligned(reference: Sequence[int], produced: Sequence[int]) -> int:
    """How many reference tokens an alignment finds again in order, wherever they stand."""
    matcher = SequenceMatcher(None, reference, produced, autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks())


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95% score interval of a share (Wilson 1927).

    Args:
        right: Successes.
        n: Trials; none of them says nothing: (0, 1).
    """
    if n == 0:
        return 0.0, 1.0
    from scipy.stats import binomtest

    low, high = binomtest(right, n).proportion_ci(method="wilson")
    return float(low), float(high)


def score(outcomes: Sequence[bool]) -> dict[str, float | int | None]:
    """A share with its sample count and 95% interval, as results keep it.

    Args:
        outcomes: One a trial; the trials must be independent for the interval to hold.
    """
    right, n = sum(outcomes), len(outcomes)
    low, high = wilson_interval(right, n)
    return {
        "right": right,
        "n": n,
        "share": round(right / n, 4) if n else None,
        "low": round(low, 4),
        "high": round(high, 4),
    }
