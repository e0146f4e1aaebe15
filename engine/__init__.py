"""The engine: exact speculative decoding over streamed weights, on one device in one process."""

import os

__version__ = "0.1.0"

# MKL reads this at its first product. Without it a row of a float32 product on a CPU has other bits
# at another place in the tile: of one output on 3 threads, of up to 4,096 outputs on 12 and more.
os.environ["MKL_CBWR"] = "AUTO,STRICT"
