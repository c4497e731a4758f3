"""`python -m memslots`, and the command `memslots`."""

import sys


def main() -> int:
    """Runs the command line; Ctrl-C while it is imported is one line, as it is later."""
    try:
        from memslots.cli import main as run
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
