"""Measure what hostile clients cost the real server with the demo model.

python -m benchmarks.hostile_clients connection [--only NAME ...] [--seconds 10] [--json]
python -m benchmarks.hostile_clients witnesses [--seconds 600] [--seeds 6] [--json]
"""

import sys
from collections.abc import Sequence

from benchmarks.hostile_clients import connection, witnesses

PROGRAMS = {"connection": connection.main, "witnesses": witnesses.main}


def main(arguments: Sequence[str]) -> int:
    """Run one of the two programs; return its exit code."""
    if not arguments or arguments[0] not in PROGRAMS:
        print(__doc__, file=sys.stderr)
        return 2
    return PROGRAMS[arguments[0]](arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
