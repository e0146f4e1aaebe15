"""YAML files: the settings of the server, the files of models, and the registry made of them."""
