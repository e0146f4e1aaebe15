"""The engine process: its two ends of the pipe, its supervision and its restart."""
