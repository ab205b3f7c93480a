"""``python -m segkernels``."""

import sys

from segkernels.cli import main

sys.exit(main())
