"""Loaded models: engines that are started, lent to requests and swapped, and their tokenizers."""
