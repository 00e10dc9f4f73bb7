"""`python -m potstill`, as torchrun starts it: the command line."""

import sys

from potstill.cli.parser import main

sys.exit(main())
