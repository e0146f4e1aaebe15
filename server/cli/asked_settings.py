"""The settings of a server that a command starts."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from server.config.files import asked_folder, search_path
from server.config.settings import Settings, load_settings


def asked_settings(args: argparse.Namespace, env: Mapping[str, str]) -> Settings:
    """Return what the options of a command, the environment and `understudy.yaml` set.

    Raises `ConfigError` that names the file, variable or option of a wrong value.
    """
    folders = search_path(asked_folder(args.config, env), Path.cwd(), env)
    options = {
        "host": args.host,
        "port": args.port,
        "default_model": args.model,
        "api_key_file": args.api_key_file,
        "tls_cert": args.tls_cert,
        "tls_key": args.tls_key,
        "insecure": args.insecure or None,
        "log_format": args.log_format,
        "access_log": args.access_log or None,
    }
    return load_settings(folders, env, options)
