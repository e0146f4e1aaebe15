"""The target's exact choice of a token: logit rules, truncation and keyed noise."""
