"""The log of the server: its formats, the request of each line, and the access log."""
