"""Conversations in the shape that a chat template takes. Pure.

Templates differ in what they take: one raises on a system message, another leaves the second of two
calls out without a word. `probe` renders marked conversations once, when a template is loaded, and
notes what is refused or lost (`features`). A request is rendered as it is where the template takes
it; else `shape` rewrites what it does not take, and no text is lost (`presence`, `forms`).
"""
