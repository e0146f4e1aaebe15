"""Drafting methods, one file each: add a file, get a method.

A file `engine/drafting/methods/<method>.py` has one function the engine calls:

    prepare(context: DraftContext) -> DraftMethod

The name in a model's YAML (`draft.method`) is the file's name; nothing is registered by hand.
"""
