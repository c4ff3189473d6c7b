"""`python -m dcl` is the command `dcl`, which torchrun can start in several processes."""

import sys

from dcl.cli import main

sys.exit(main())
