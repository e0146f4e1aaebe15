"""Put the frames of a race together to an animated picture."""

import json
from itertools import pairwise
from pathlib import Path

from PIL import Image

LAST_MS = 4000  # for which the result is shown
COLOURS = 48


def animate(frames: Path, out: Path) -> None:
    """Write an animated GIF of the frames in a folder, at the speed at which they were taken."""
    times: list[int] = json.loads((frames / "times.json").read_text())
    durations = [
        *(after - before for before, after in pairwise(times)),
        LAST_MS,
    ]
    images = [Image.open(path).convert("RGB") for path in sorted(frames.glob("*.png"))]
    palette = images[-1].quantize(COLOURS)
    first, *others = (image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images)
    first.save(out, save_all=True, append_images=others, duration=durations, loop=0, optimize=True)
