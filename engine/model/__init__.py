"""transformers' own model, with streamed weights, tiles of rows and paged attention."""
