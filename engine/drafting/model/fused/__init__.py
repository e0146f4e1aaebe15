"""Layers of a draft model that take few kernel launches; the library's own ones are replaced."""
