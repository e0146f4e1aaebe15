"""The entry point. Ctrl-C ends every command at once, also while its libraries are imported."""

import sys
from collections.abc import Sequence

from server.cli.signals import EndSignals


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (1: it failed, and the reason is on stderr)."""
    with EndSignals() as signals:
        from server.cli.run import run  # imported while signals are handled, as it takes a while

        return run(argv, signals)


if __name__ == "__main__":
    sys.exit(main())
