"""Scores of samples as they are measured: on disk from the first on, and gone on from."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Scores = dict[str, Any]
"""`sample` (its place in the set), `condition`, `rate`, `positions`, and what was measured."""

FIRST = 2
"""Samples that are measured before anything is written: soon enough to see that all goes well."""


class SampleLog:
    """What a run has measured.

    Each line of the file is what one sample scored under one condition; a batch of samples ends in
    a line that says so, and only such batches count when a run goes on.

    Args:
        path: JSON lines; in memory alone without it.
        settings: what the scores depend on, written as the file's first line.
        progress: called with a line before and after each batch of samples.
        batch: samples that are measured together.

    Attributes:
        rows: what tells the rows that are measured from others of the same name: scores of others,
            as of a file that was changed since, do not count.

    Raises:
        ValueError: the file was written with other settings, or is another kind of file.

    Examples:
        >>> log = SampleLog()
        >>> double = lambda places: [{"sample": i, "value": 2 * i} for i in places]
        >>> [scores["value"] for scores in log.collect(("task", "data", None), 3, double)]
        [0, 2, 4]
    """

    def __init__(
        self,
        path: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
        progress: Callable[[str], None] | None = None,
        batch: int = 8,
    ):
        self.path = None if path is None else Path(path)
        self.progress = progress
        self.batch = batch
        self.rows = ""
        self.started = time.perf_counter()
        self._measured: dict[str, list[Scores]] = {}
        self._done: dict[str, set[int]] = {}
        if self.path is None:
            return
        head = json.dumps({"settings": settings or {}}, sort_keys=True)
        if self.path.exists() and self.path.stat().st_size:
            self._read(self.path, head)
        else:
            self.path.write_text(head + "\n", encoding="utf-8")

    def _read(self, path: Path, head: str) -> None:
        first, *lines = path.read_text("utf-8").split("\n")
        if first != head and first.startswith('{"settings"') and not any(lines):
            first = head  # of a run that measured nothing
        if first != head:
            raise ValueError(_differs(path, first, head))
        waiting: list[Scores] = []
        whole = [first]
        part: list[str] = []
        for line in lines:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                break  # the run was broken while it wrote this line
            part.append(line)
            if "done" not in entry:
                waiting.append(entry["scores"])
                continue
            self._measured.setdefault(entry["set"], []).extend(waiting)
            self._done.setdefault(entry["set"], set()).update(entry["done"])
            whole += part
            waiting, part = [], []
        path.write_text("\n".join(whole) + "\n", encoding="utf-8")

    def collect(
        self,
        of: Sequence[Any],
        count: int,
        measure: Callable[[list[int]], Iterable[Scores]],
    ) -> list[Scores]:
        """The scores of all samples of a set, those of an earlier run as they were.

        Args:
            of: what names the set: task, data, and a length where there are several.
            count: how many samples there are.
            measure: scores the samples of these places under every condition.

        Returns:
            Scores in the order of the samples, of each sample in that of its conditions.
        """
        name = json.dumps([*of, self.rows])
        done = self._done.setdefault(name, set())
        measured = self._measured.setdefault(name, [])
        missing = [i for i in range(count) if i not in done]
        label = " on ".join(str(part) for part in of[:2] if part) or "measuring"
        if isinstance(of[-1], int):
            label += f", {of[-1]} tokens"
        if done and missing:
            self._say(f"{label}: resuming after {len(done)} of {count} samples")
        started, at = time.perf_counter(), 0
        size = self.batch if done else min(FIRST, self.batch)
        while at < len(missing):
            places = missing[at : at + size]
            scores = list(measure(places))
            measured += scores
            done.update(places)
            self._write(name, scores, places)
            at, size = at + len(places), self.batch
            left = (time.perf_counter() - started) / at * (len(missing) - at)
            self._say(f"{label}: {len(done)} of {count} samples, {_clock(left)} left")
        return sorted((s for s in measured if s["sample"] < count), key=lambda s: s["sample"])

    def _write(self, name: str, scores: list[Scores], places: list[int]) -> None:
        if self.path is None:
            return
        lines = [json.dumps({"scores": each}, ensure_ascii=False) for each in scores]
        lines.append(json.dumps({"set": name, "done": places}))
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")

    def _say(self, line: str) -> None:
        if self.progress is not None:
            self.progress(line)


def _differs(path: Path, first: str, head: str) -> str:
    try:
        old = json.loads(first)["settings"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return f"{path} is not a file of partial results; name another output."
    new = json.loads(head)["settings"]
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    was = ", ".join(f"{name} {old.get(name)!r} (now {new.get(name)!r})" for name in names)
    return (
        f"{path} holds the results of another run, with {was}: remove it to measure anew, or name "
        "another output."
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
