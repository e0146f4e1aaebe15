"""Draft trees: the methods that propose tokens, and how many rows are worth their time."""
