"""The exact choice of the next token: logit rules, truncation, and noise keyed by position."""
