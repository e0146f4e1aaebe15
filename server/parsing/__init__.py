"""What the parsers of answers have in common. Pure."""
