"""The engine: one device, one process, exact speculative decoding over streamed weights."""

__version__ = "0.1.0"
