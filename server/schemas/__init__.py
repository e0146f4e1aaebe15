"""What comes in (pydantic, strict), what goes out (typed dictionaries), and the check of bodies."""
