"""Small recurrent layers of each kind, and a tree."""

from dataclasses import replace

from engine.recurrent.shape import LayerShape

DELTA = LayerShape(
    channels=2 * 2 * 32 + 4 * 16,
    taps=4,
    is_activated=True,
    heads=4,
    key_heads=2,
    depth=32,
    width=16,
    is_corrected=True,
    is_normalized=True,
)
WIDE = replace(DELTA, channels=3 * 4 * 20, key_heads=4, depth=20, width=20, decays=20)
MAMBA = LayerShape(
    channels=6 * 24 + 2 * 3 * 16,
    taps=4,
    is_activated=True,
    heads=6,
    key_heads=3,
    depth=16,
    width=24,
)
# The parent of each node of a tree, and the nodes of one of its paths.
PARENTS = (-1, 0, 0, 1, 2, 2, 4, 6, 6, 3)
PATH = (0, 2, 4, 6, 7)
