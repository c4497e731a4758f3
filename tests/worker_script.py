"""A process whose worker prints its number and waits; see test_store_corpus.py."""

import multiprocessing
import os
import time

from memslots.interruption import end_with_parent, without_interrupts


def work():
    end_with_parent()
    print(os.getpid(), flush=True)
    time.sleep(60)


if __name__ == "__main__":
    with without_interrupts():
        multiprocessing.get_context("spawn").Process(target=work).start()
    time.sleep(60)
