"""Draft trees: who proposes tokens, and how many are worth their time."""
