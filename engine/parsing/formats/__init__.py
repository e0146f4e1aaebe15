"""The formats in which model families mark tool calls and reasoning, one file for each format.

A format has the name of its file. `engine/parsing/format.py` has a complete example.
"""
