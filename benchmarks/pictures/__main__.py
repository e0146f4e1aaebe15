"""Make the pictures of the terminal, and the animated race: `python -m benchmarks.pictures URL`.

URL is that of a server of the demo model. `make pictures` starts one, and takes the frames.
"""

import sys
from pathlib import Path

from benchmarks.pictures.animation import animate
from benchmarks.pictures.terminal import terminal_pictures

ROOT = Path(__file__).parents[2]
OUT = ROOT / "docs/pictures"


def main() -> None:
    """Write the pictures into docs/pictures."""
    (url,) = sys.argv[1:]
    animate(ROOT / "build/web/race", OUT / "race.gif")
    terminal_pictures(url, OUT)


if __name__ == "__main__":
    main()
