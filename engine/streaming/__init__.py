"""The weight stream: a ring of device slots that links fill from RAM or disk."""
