"""Measure a checkpoint: the memory at each rate, beside the full text and the control.

    pip install -e ".[eval]"  # in a checkout
    python examples/evaluate.py                              # tiny, SQuAD
    python examples/evaluate.py my_compressor --data hotpotqa/validation --data-dir my_copies

Compare the memory with the full text, with no context, with the text cut to the memory's length,
and with the control (another text's memory). `memslots eval --tasks qa` measures the same.
"""

import argparse
from pathlib import Path

from memslots import MemslotsModel, embedded
from memslots.evaluation.report import write_results
from memslots.evaluation.suite import evaluate_tasks
from memslots.evaluation.tables import markdown

parser = argparse.ArgumentParser()
parser.add_argument("checkpoint", nargs="?", default=embedded("tiny"))
parser.add_argument("--data", default="squad/validation", help="set/split, or a file of questions")
parser.add_argument("--data-dir", help="folder with local copies of the sets; else the Hub")
parser.add_argument("--samples", type=int, default=50)
parser.add_argument("--output", default="results.json")
options = parser.parse_args()

# 1. Every condition answers the same questions in the same run, greedily.
model = MemslotsModel.from_pretrained(options.checkpoint)
results = evaluate_tasks(
    model,
    ["qa"],
    data={"qa": [options.data]},
    data_dir=options.data_dir,
    samples=options.samples,
    progress=print,
)

# 2. One record a figure, with its 95% bootstrap interval; beside a checkpoint, `results.json` is
#    what its model card shows.
for record in results["records"]:
    if record["metric"] == "exact_match":
        reads = f"{record['condition']} {record['rate'] or ''}".strip()
        print(f"{reads:12} {record['value']:.3f} ({record['low']:.3f} to {record['high']:.3f})")
write_results(Path(options.output), results)
Path(options.output).with_suffix(".md").write_text(markdown(results), encoding="utf-8")
