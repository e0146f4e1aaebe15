"""The version of the installed package."""

from importlib import metadata


def version(*, if_not_installed: str) -> str:
    """Return the version of the installed package, or `if_not_installed`."""
    try:
        return metadata.version("understudy")
    except metadata.PackageNotFoundError:
        return if_not_installed
