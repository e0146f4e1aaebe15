"""Hostile files of every kind that is read from a model folder or a configuration folder.

`make fuzz` runs thousands of cases and counts those that end in anything but an answer or an error
that names a file; `make test` runs a small fixed sample.
"""
