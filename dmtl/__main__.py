"""`python -m dmtl` is `dmtl`."""

import sys

from dmtl.cli import main

sys.exit(main())
