"""How model families mark tool calls and reasoning: one file a format, found by its name.

`server/parsing/format.py` has a complete example.
"""
