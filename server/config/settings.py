"""The server's own settings, from the command line, the environment and `understudy.yaml`.

Command-line options override environment variables, which override the file.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from server.config.files import Section, Size, check_section, read_yaml
from server.config.peers import PeerSections, in_folder

FILE_NAME = "understudy.yaml"
PREFIX = "UNDERSTUDY_"
FILES = ("api_key_file", "tls_cert", "tls_key")  # relative to the folder of the file that has them
FILE_ONLY = ("peers",)  # settings that no variable and no option sets

# Where a service is called `understudy`, Kubernetes sets UNDERSTUDY_PORT to its address in all
# containers of the namespace, in place of what the image has set.
SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")

LONGEST_S = 366 * 86_400
Seconds = Annotated[float, Field(gt=0, le=LONGEST_S)]


def _words(value: object) -> object:
    """Return the list in a text with commas, as environment variables have it; else `value`."""
    return [word.strip() for word in value.split(",")] if isinstance(value, str) else value


# Browsers send an origin without a path and a slash at its end; with them it would never match.
Origin = Annotated[str, Field(pattern=r"^(\*|null|[a-z][a-z0-9+.-]*://[^/\s]+|file://)$")]
Origins = Annotated[tuple[Origin, ...], BeforeValidator(_words)]
# Names only: IP addresses are always allowed (without API keys), and ports are not compared.
HostName = Annotated[str, Field(pattern=r"^(\*|[A-Za-z0-9._-]+)$")]
HostNames = Annotated[tuple[HostName, ...], BeforeValidator(_words)]


class Settings(Section):
    """The server's settings.

    Each field is a key of `understudy.yaml` and, but for those of `FILE_ONLY`, an environment
    variable `UNDERSTUDY_<FIELD>`.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    default_model: str = "demo"
    strict_model: bool = True  # false: an unknown model name is served by the default model
    max_queue: Annotated[int, Field(ge=1, le=1_000_000)] = (
        256  # the most requests accepted and not finished
    )
    load_timeout: Seconds = 600.0  # the longest time that a request waits for its model
    keepalive: Seconds = 15.0  # between keep-alive messages while an answer has no new text
    blank_after: Seconds = 60.0  # a JSON answer that takes longer is begun with white space
    client_timeout: Seconds = 60.0  # a client that sends or reads nothing for this long is dropped
    shutdown_timeout: Annotated[float, Field(ge=0, le=LONGEST_S)] = 8.0  # 0: at once
    max_body_bytes: Annotated[Size, Field(ge=1024, le=2**40)] = 32 * 2**20
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    access_log: bool = False  # whether the log has a line for each request
    traces: bool = False  # whether traces are sent by OpenTelemetry
    api_key_file: Path | None = None
    tls_cert: Path | None = None  # a PEM file; with it the server speaks TLS only
    tls_key: Path | None = None  # a PEM file; None: the key is in `tls_cert`
    cors_origins: Origins = ()  # web pages of these origins may send requests; "*": of all
    allowed_hosts: HostNames = ()  # further host names of this server, if it has no keys; "*": any
    peers: PeerSections = ()  # other servers of the same model, which requests may run on
    insecure: bool = False  # whether to listen on other hosts than loopback without keys


def is_service_address(variable: str, value: str) -> bool:
    """Return whether Kubernetes has set an environment variable to the address of a service."""
    return variable.endswith("_PORT") and SERVICE_ADDRESS.match(value) is not None


def variable_value(variable: str, env: Mapping[str, str]) -> str:
    """Return the value of a setting's environment variable; "" if none is set."""
    value = env.get(variable, "")
    return "" if is_service_address(variable, value) else value


def load_settings(
    folders: Sequence[Path], env: Mapping[str, str], options: Mapping[str, Any]
) -> Settings:
    """Merge the first `understudy.yaml` in `folders`, the environment, and the options.

    `options` are those of the command line; None means that one was not given. Raises `ConfigError`
    that names the file, variable or option of a wrong value.
    """
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    where = FILE_NAME
    for folder in folders:
        if (folder / FILE_NAME).is_file():
            where = str(folder / FILE_NAME)
            values |= read_yaml(folder / FILE_NAME)
            if "peers" in values:
                values["peers"] = in_folder(values["peers"], folder)
            for name in FILES:
                if isinstance(values.get(name), str):
                    values[name] = folder / values[name]
            break
    for name in Settings.model_fields:
        if name in FILE_ONLY:
            continue
        variable = PREFIX + name.upper()
        if value := variable_value(variable, env):
            values[name], origin[name] = value, f"environment variable {variable}"
        if options.get(name) is not None:
            values[name], origin[name] = options[name], "--" + name.replace("_", "-")
    return check_section(values, Settings, where, origin)
