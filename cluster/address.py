"""Where a peer is, and what its server wants."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Address:
    """One entry of the setting `peers`: the address of another server.

    Args:
        url: the beginning of its URLs, without a slash at the end.
        key: the API key that it wants; "" for none.
        ca_file: the certificate that signs its own; None for those that the system trusts.
    """

    url: str
    key: str = ""
    ca_file: Path | None = None
