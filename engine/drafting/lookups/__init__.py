"""What drafts that only look something up have in common."""
