"""Loaded models: engines that are started, shared and swapped, and their tokenizers."""
