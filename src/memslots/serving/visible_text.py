"""The text of an answer while it grows: what a client may already see of it."""

from __future__ import annotations

from collections.abc import Sequence

_HALF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}"


class VisibleText:
    """Deltas that add up to what `model.generate` returns, cut before the first stop string.

    `generate` strips white space at both ends, so leading white space is never shown, and white
    space at the end is held back until something follows it; so is the beginning of what may become
    a stop string, and a character of which some bytes are still missing.

    Args:
        stop: Strings before which the answer ends.
    """

    def __init__(self, stop: Sequence[str] = ()):
        self.stop = tuple(stop)
        self.stopped = False
        self._shown = ""

    @property
    def text(self) -> str:
        """All that has been shown."""
        return self._shown

    def update(self, whole: str) -> str:
        """What can be shown more of, now that the answer is `whole`, from its beginning."""
        if self.stopped:
            return ""
        cut = self._cut(whole)
        if self.stopped:
            return self._show(cut.strip())
        held = max((_overlap(cut, stop) for stop in self.stop), default=0)
        cut = cut[: len(cut) - held].rstrip(_HALF_A_CHARACTER)
        return self._show(cut.strip())

    def finish(self, whole: str) -> str:
        """The rest, when nothing will follow `whole`."""
        return "" if self.stopped else self._show(self._cut(whole).strip())

    def _cut(self, whole: str) -> str:
        ends = [at for at in (whole.find(stop) for stop in self.stop) if at >= 0]
        self.stopped = bool(ends)
        return whole[: min(ends)] if ends else whole

    def _show(self, text: str) -> str:
        # Decoders of tokens only ever add to a text; should one not, what was shown stays.
        if not text.startswith(self._shown):
            return ""
        delta = text[len(self._shown) :]
        self._shown = text
        return delta


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that may become `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
