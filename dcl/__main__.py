"""The command `dcl`, also as `python -m dcl`, which torchrun can start in several processes."""

import sys


def main() -> int:
    """Run the command; returns the exit code."""
    try:
        from dcl.app import cli  # here, because it takes seconds, in which Ctrl-C may come

        return cli.main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
