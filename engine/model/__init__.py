"""Models of transformers, run with streamed weights, tiles of rows and paged attention."""
