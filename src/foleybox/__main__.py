"""`python -m foleybox` is the `foleybox` command."""

import sys

from foleybox.cli import main

if __name__ == "__main__":
    sys.exit(main())
