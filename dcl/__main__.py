"""`python -m dcl` is the command `dcl`, which torchrun can start in several processes."""

import sys

from dcl.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
