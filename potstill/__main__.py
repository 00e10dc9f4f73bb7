"""`python -m potstill`, as torchrun starts it: the command line."""

import sys
from pathlib import Path

here = sys.path[:1]
if here in ([""], [str(Path.cwd())]):  # with -m Python looks there first: not for our imports
    sys.path[:1] = []
    sys.path.append(str(Path.cwd()))

from potstill.cli.parser import main  # noqa: E402

sys.exit(main())
