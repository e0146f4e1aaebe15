"""What hostile clients cost a server: one connection at a time, and beside witnesses."""
