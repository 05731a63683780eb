"""``python -m nasb_engine`` is ``nasb-engine``."""

import sys

from nasb_engine.cli import main

sys.exit(main())
