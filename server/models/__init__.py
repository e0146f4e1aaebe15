"""Loaded models: starting an engine and its tokenizer, sharing it among requests, and swapping."""
