"""Choosing a token without searching all of a large vocabulary, to save time on the host."""
