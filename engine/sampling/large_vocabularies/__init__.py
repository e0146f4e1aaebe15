"""Choosing a token without looking at all of a large vocabulary, for the host's time alone."""
