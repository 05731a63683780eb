"""What the tests of studies share: the scripts of studies/ can be imported, as they import each other."""

import sys
from pathlib import Path

STUDIES = Path(__file__).parents[2] / "studies"
collect_ignore_glob = [] if STUDIES.is_dir() else ["*"]  # the source distribution has none

if str(STUDIES) not in sys.path:
    sys.path.insert(0, str(STUDIES))
