"""Results of `memslots eval` or the lab's suite, as a card shows them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from huggingface_hub import EvalResult

from memslots.data import ADAPTERS
from memslots.evaluation.report import markdown_report
from memslots.evaluation.tables import markdown
from memslots.hub_cards.checkpoint_facts import without_paths

Results = dict[str, Any]

_TASK_TYPES = {
    "qa": ("question-answering", "Question answering from memory"),
    "needle": ("question-answering", "Needle in a haystack from memory"),
    "reconstruction": ("text-generation", "Reconstruction from memory"),
    "completion": ("text-generation", "Completion after a memory"),
    "icl": ("text-generation", "In-context learning from memory"),
    "roleplay": ("text-generation", "Role play from memory"),
}
_METRIC_TYPES = {"rouge_l": "rouge"}  # by the Hub's name; all others have one name


def is_tiny(results: Results) -> bool:
    """Whether they are those of the lab's suite rather than of `memslots eval`."""
    return results.get("suite") == "tiny"


def eval_results(results: Results) -> list[EvalResult]:
    """The measurements of memories, each with its rate, count and interval; not the baselines."""
    return list(_tiny_entries(results) if is_tiny(results) else _task_entries(results))


def _tiny_entries(results: Results) -> Iterator[EvalResult]:
    personas: dict[str, Any] = {
        "dataset_type": "personas",
        "dataset_name": "generated biographies of held-out people",
        "dataset_split": "test",
    }
    for rate, scores in results["one_person"]["memory"].items():
        score = scores["all"]
        yield EvalResult(
            task_type="question-answering",
            task_name="Question answering from memory",
            metric_type="exact_match",
            metric_name=f"Exact match, rate {rate}",
            metric_value=_hundredths(score["share"]),
            metric_args={
                "rate": int(rate),
                "n": score["n"],
                "low": _hundredths(score["low"]),
                "high": _hundredths(score["high"]),
            },
            **personas,
        )
    for rate, scores in results["reconstruction"].items():
        yield EvalResult(
            task_type="text-generation",
            task_name="Reconstruction from memory",
            metric_type="accuracy",
            metric_name=f"Tokens at their own place, rate {rate}",
            metric_value=_hundredths(scores["tokens_right"]),
            metric_args={"rate": int(rate), "n": scores["tokens"]},
            **personas,
        )


def _task_entries(results: Results) -> Iterator[EvalResult]:
    for record in results["records"]:
        if record["condition"] != "memory" or record["value"] is None:
            continue
        task_type, task_name = _TASK_TYPES.get(record["task"], ("text-generation", record["task"]))
        name, _, split = record["data"].partition("/")
        adapter = ADAPTERS.get(name)
        details = {key: record[key] for key in ("length", "kind", "depth") if record.get(key)}
        yield EvalResult(
            task_type=task_type,
            task_name=task_name,
            dataset_type=(adapter.hub_id if adapter else None) or name,
            dataset_name=adapter.title if adapter else name,
            dataset_config=adapter.hub_config if adapter else None,
            dataset_split=split or None,
            metric_type=_METRIC_TYPES.get(record["metric"], record["metric"]),
            metric_name=f"{record['metric']}, rate {record['rate']}"
            + "".join(f", {key} {value}" for key, value in details.items()),
            metric_value=record["value"],
            metric_args={
                "rate": record["rate"],
                "n": record["n"],
                "low": record["low"],
                "high": record["high"],
                **details,
            },
        )


def results_markdown(results: Results) -> str:
    """All tables, baselines and intervals among them."""
    if is_tiny(results):
        return markdown_report(results).strip()
    return markdown({**results, "notes": without_paths(results["notes"])}).strip()


def fidelity(results: Results, rate: int) -> str:
    """What was measured at a rate, in a few words; empty if nothing was."""
    if is_tiny(results):
        condition = results["one_person"]["memory"].get(str(rate))
        if condition is None:
            return ""
        score = condition["all"]
        text = (
            f"{score['share']:.1%} exact match ({score['low']:.1%} to {score['high']:.1%}, "
            f"n {score['n']:,})"
        )
        plain = results["one_person"]["plain"]["all"]["share"]
        return f"{text}; {plain:.1%} from the plain text"
    shown = {("qa", "f1"), ("reconstruction", "bleu"), ("icl", "accuracy")}
    return "; ".join(
        f"{record['data']} {record['metric']} {record['value']:g} "
        f"({record['low']:g} to {record['high']:g})"
        for record in results["records"]
        if record["condition"] == "memory"
        and record["rate"] == rate
        and (record["task"], record["metric"]) in shown
        and record["value"] is not None
    )


def seconds_a_question(results: Results, rate: int) -> float | None:
    """Mean time of one answer from a memory, on the machine that the results name."""
    if not is_tiny(results):
        return None
    condition = results["one_person"]["memory"].get(str(rate))
    return condition["seconds"] / condition["all"]["n"] if condition else None


def prompt_tokens(results: Results, rate: int) -> float | None:
    """Mean prompt tokens that the decoder read in place of a context, markers included."""
    if is_tiny(results):
        counts = results["slots"].get(str(rate))
        return counts["positions"] if counts else None
    return None


def measured_limits(results: Results) -> list[str]:
    """What the results say of numbers, exact strings and long contexts."""
    return list(_tiny_limits(results) if is_tiny(results) else _task_limits(results))


def _tiny_limits(results: Results) -> Iterator[str]:
    one_person = results["one_person"]
    by_rate = [
        f"{scores['numbers']['share']:.1%} at rate {rate} (words: {scores['words']['share']:.1%})"
        for rate, scores in one_person["memory"].items()
        if scores["numbers"]["n"]
    ]
    if by_rate:
        yield f"Numbers: questions with a numeric answer are right in {', '.join(by_rate)}."
    by_rate = [
        f"{scores['tokens_right']:.1%} of tokens at their own place at rate {rate} "
        f"({scores['segments_exact']['right']} of {scores['segments_exact']['n']} segments exact)"
        for rate, scores in results["reconstruction"].items()
    ]
    if by_rate:
        yield f"Exact strings: read back from memory, {', '.join(by_rate)}."
    for part in results.get("many_people", {}).values():
        shares = [f"{c['all']['share']:.1%} at rate {rate}" for rate, c in part["memory"].items()]
        yield (
            f"Contexts of {part['people']} people: {', '.join(shares)}, against "
            f"{part['plain']['all']['share']:.1%} from the plain text."
        )


def _task_limits(results: Results) -> Iterator[str]:
    for metric, words in (
        ("exact", "segments read back exactly"),
        ("tokens_right", "tokens read back at their own place"),
    ):
        shares = [
            f"{100 * record['value']:.1f}% at rate {record['rate']} ({record['data']})"
            for record in results["records"]
            if record["task"] == "reconstruction"
            and record["metric"] == metric
            and record["condition"] == "memory"
            and record["value"] is not None
        ]
        if shares:
            yield f"Exact strings: {words}, {', '.join(shares)}."


def measured_command(results: Results, name: str) -> str:
    """The command that measures the same again."""
    if is_tiny(results):
        return f"python -m lab suite {name} --questions {results['questions']}"
    tasks = ",".join(dict.fromkeys(record["task"] for record in results["records"]))
    rates = ",".join(map(str, results["rates"]))
    asked = f"--tasks {tasks} --rates {rates} --samples {results['samples']}"
    return f"memslots eval --model {name} {asked}"


def _hundredths(share: float) -> float:
    return round(100 * share, 2)
