"""The model that a server runs, and whether two servers run the same weights and compute the same.

Weights are the same if all bytes of their files are (`contents`). Until both servers have read
them, they count as the same if their files have the same names, sizes and change times, as a
faithful copy has. An engine's bits have two names for the same reason: its fingerprint, which
depends on these times, and one that depends on the bytes instead. Engines that share a name compute
the same.
"""

from collections.abc import Set
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated

from pydantic import Field

from engine.messages import ModelInfo

Name = Annotated[str, Field(max_length=1000)]
DIGITS = 12  # hex digits of a fingerprint


@dataclass(frozen=True)
class ServedModel:
    """The model that a server has loaded.

    Args:
        files: changes with the names, sizes and change times of its files.
        fingerprint: changes with `files`, and with all else that may change an answer.
        contents: a digest of the bytes of its files and of how they are used; "" while unknown.
        arithmetic: changes with all that may change an answer besides the weights; "" if unknown.
        read_share: of the bytes of its files, the share that was read for `contents`.
    """

    id: Name
    files: Name
    fingerprint: Name
    draft_methods: tuple[Name, ...]
    contents: Name = ""
    arithmetic: Name = ""
    read_share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0

    @classmethod
    def of(cls, info: ModelInfo) -> "ServedModel":
        """Return what a server says of its model that has not read the bytes of its files."""
        return cls(info.model_id, info.files, info.fingerprint, info.draft_methods)

    @property
    def names(self) -> frozenset[str]:
        """The fingerprints of its answers: engines that share one compute the same bits."""
        if not self.contents or not self.arithmetic:
            return frozenset({self.fingerprint})
        digest = sha256(f"{self.contents}\0{self.arithmetic}".encode()).hexdigest()
        return frozenset({self.fingerprint, f"us-{digest[:DIGITS]}"})

    def has_weights_of(self, other: "ServedModel") -> bool:
        """Return whether both have the same weights, used in the same way, as far as is known."""
        if self.contents and other.contents:  # equal names and times may be those of a damaged copy
            return self.contents == other.contents
        return self.files == other.files

    def computes_as(self, names: Set[str]) -> bool:
        """Return whether it computes the bits of the engine with these names."""
        return bool(self.names & names)
