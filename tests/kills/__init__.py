"""Answers of the real server whose engine dies in many ways: `python -m tests.kills`."""
