"""`python -m memslots`."""

import sys

from memslots.cli import main

sys.exit(main())
