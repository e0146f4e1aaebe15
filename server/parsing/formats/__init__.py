"""How model families mark tool calls and reasoning: one file a format, found by its name.

Each has a `FORMAT`. Adding a file adds the format: it is chosen when it recognises a model's chat
template, or by its name in the model's YAML file.
"""
