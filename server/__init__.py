"""The front end: the HTTP APIs, the registry of models, and the command line."""
