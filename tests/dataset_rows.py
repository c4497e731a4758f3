"""Hand-written rows in the layouts of the sets, and what tests of reading them share."""

import json
from pathlib import Path

from datasets import Dataset

ROWS = Path(__file__).parent / "data_rows"


def assert_counted(loaded, kept, bad, left_out):
    report = loaded.report
    assert report.finished
    assert dict(report.bad) == bad
    assert dict(report.left_out) == left_out
    assert report.kept == kept
    assert report.read == kept + sum(bad.values()) + sum(left_out.values())


class FakeHub:
    """Gives a file of rows as `datasets` would, and remembers what it was asked for."""

    def __init__(self, file, errors=()):
        self.rows = Dataset.from_list([json.loads(line) for line in file.read_text().splitlines()])
        self.errors = list(errors)
        self.calls = []

    def __call__(self, *arguments, **options):
        self.calls.append((arguments, options))
        if self.errors:
            raise self.errors.pop(0)
        return self.rows.to_iterable_dataset() if options["streaming"] else self.rows
