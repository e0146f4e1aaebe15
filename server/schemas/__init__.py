"""Schemas of request bodies (strict pydantic models) and of answers (typed dictionaries)."""
