"""``python -m nasb`` is ``nasb``; so ``torchrun --nproc-per-node 2 -m nasb run ...`` works as well."""

import sys

from nasb.cli import main

if __name__ == "__main__":
    sys.exit(main())
