"""What comes in (pydantic, strict) and what goes out (typed dictionaries)."""
