"""Training a model whose weights are spread over processes (FSDP)."""

from dataclasses import replace

from memslots.modeling.layout_memslots import TASKS, Prompt, Row


def with_tasks(rows: list[Row], present: list[bool], token: int) -> tuple[list[Row], list[bool]]:
    """Rows with targets for every task that any process has, and which tasks were made up.

    The model runs its decoder once a task, and each run gathers the decoder's weights from all
    processes: they must run it equally often. A made-up row is one token after the first row's
    first segment; its task gets no weight.

    Args:
        rows: this process's batch.
        present: for each task, whether any process has targets of it.
        token: any token of the decoder.
    """
    counts = [0] * len(TASKS)
    for row in rows:
        counts[row.task] += row.n_targets
    made_up = [is_present and not count for is_present, count in zip(present, counts, strict=True)]
    blank = Row(rows[0].segments[:1], Prompt([token]), [token])
    added = [replace(blank, task=task) for task, missing in enumerate(made_up) if missing]
    return [*rows, *added], made_up
