"""Conversations, rewritten where needed so that a model's chat template renders all their texts.

Templates differ in what they support: one raises an error on a system message, another silently
leaves out the second of two calls. When a template is loaded, `probe` renders sample conversations
and records which features are refused or lost (`features`). `forms` renders a request unchanged if
the template supports it; otherwise `shape` rewrites the unsupported parts. `presence` checks that
the prompt has all texts. The functions are pure.
"""
