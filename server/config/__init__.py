"""YAML files: server settings, model files, and how mistakes in them are reported."""
