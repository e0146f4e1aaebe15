"""The memory plan: what lives where, and how fast it will be."""
