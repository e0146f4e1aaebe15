"""Grammar-constrained answers: masks of allowed tokens, and completion before a token limit."""
