"""`python -m hierclass` is the command `hierclass`."""

import sys

from hierclass.cli import main

if __name__ == "__main__":
    sys.exit(main())
