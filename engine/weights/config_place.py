"""Where the values of a model's configuration are, for messages about them.

They are in the folder's config.json or, if the folder was made for a GGUF file, in its metadata.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from engine.errors import ModelError
from engine.files import read_object
from engine.weights.gguf_keys import FAMILY, metadata_names
from engine.weights.shards import has_link, read_link

CONFIG_NAME = "config.json"


class ConfigError(ModelError):
    """A value of the configuration cannot be used.

    It is raised where only the values are known. `ConfigPlace.naming` adds the file.

    Args:
        key: the path of the key in config.json, such as "quantization_config.bits".
        reason: what is wrong and what to do. It follows the key without a blank.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{CONFIG_NAME}: {key}{reason}")
        self.key = key
        self.reason = reason


@dataclass(frozen=True)
class ConfigPlace:
    """The file with the values of a configuration, and the names that they have there.

    Args:
        path: the file. It is what `str` returns.
        names: the names in the file, by the keys of config.json, if they are others.
    """

    path: Path
    names: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return str(self.path)

    def name(self, key: str) -> str:
        """Return the name in the file of a key of config.json, which may be nested ("a.b")."""
        parts = (key, key.rpartition(".")[2], key.partition(".")[0])
        return next((self.names[part] for part in parts if part in self.names), key)

    def error(self, key: str, reason: str) -> ModelError:
        """Return the error for the value of a key of config.json; `reason` follows its name."""
        return ModelError(f"{self.path}: {self.name(key)}{reason}")

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Turn a `ConfigError` of the block into a `ModelError` that names the file."""
        try:
            yield
        except ConfigError as error:
            raise self.error(error.key, error.reason) from error


def config_place(folder: Path) -> ConfigPlace:
    """Return where the configuration of a folder is."""
    own = folder / CONFIG_NAME
    if has_link(folder):
        with suppress(ModelError):  # the file was changed, which is reported when it is read
            family = read_object(own).get("quantization_config", {}).get(FAMILY)
            return ConfigPlace(read_link(folder)[0], metadata_names(str(family)))
    return ConfigPlace(own)
