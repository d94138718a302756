"""``python -m mim4dd_pl`` is ``mim4dd``."""

import sys

from mim4dd_pl.cli import main

if __name__ == "__main__":
    sys.exit(main())
