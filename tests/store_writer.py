"""Writers for the tests that kill them: each is a fork of one process that has torch imported.

Run as `store_writer.py FOLDER`. For each line `START` on standard input it forks a writer, which
adds documents START, START + 1, ... one by one, deletes every fifth of them again, and
compacts now and then; it prints `PID`, then `added N` and `deleted N` after the store has returned.
"""

import os
import sys

from store_memories import make_memory

from memslots.serving.store import MemoryStore
from memslots.serving.store_format import encode_memory


def text_of(number: int) -> str:
    """The text of a document, of varied length."""
    return f"document {number}. " + "and so on, " * (number % 7)


def write(folder: str, start: int) -> None:
    store = MemoryStore(folder)
    number = start
    while True:
        store.add(f"doc{number}", make_memory([text_of(number)]), {"number": number})
        os.write(1, f"added {number}\n".encode())
        if number % 5 == 0:
            store.delete(f"doc{number}")
            os.write(1, f"deleted {number}\n".encode())
        if number % 20 == 19:
            store.compact()
        number += 1


if __name__ == "__main__":
    # What the first use imports, once for all writers.
    encode_memory(["x"], make_memory(["x"]), ["{}"], "bfloat16")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            write(sys.argv[1], int(line))
        os.write(1, f"pid {child}\n".encode())
        os.waitpid(child, 0)
        os.write(1, b"dead\n")
