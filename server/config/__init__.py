"""YAML files: the settings of the server, the model files, and the registry of known models."""
