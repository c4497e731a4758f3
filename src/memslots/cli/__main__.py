"""`python -m memslots.cli`."""

import sys

from . import main

sys.exit(main())
