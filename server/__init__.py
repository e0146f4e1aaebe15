"""The front end: HTTP APIs over the engine process, the registry of models, the command line."""
