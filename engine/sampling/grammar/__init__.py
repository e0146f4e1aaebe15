"""Answers held to a grammar: token masks, and closing before a token limit."""
