"""Mutated bodies of real clients, sent to the real front end with an engine that has no model.

`make fuzz-requests` sends 10,000 and counts those whose answer is not as it has to be; `make test`
sends a small fixed sample.
"""
