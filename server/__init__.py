"""The front end: the OpenAI API over HTTP, the registry of models, the command line."""
