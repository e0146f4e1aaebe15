"""The engine: exact speculative decoding over streamed weights, on one device in one process."""

__version__ = "0.1.0"
