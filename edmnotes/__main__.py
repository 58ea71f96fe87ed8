"""``python -m edmnotes``: the command line."""

import sys

from edmnotes.cli import main

sys.exit(main())
