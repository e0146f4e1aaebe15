"""A checkpoint whose tensors are read from GGUF files."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.errors import ModelError
from engine.weights.gguf_config import ARCHITECTURES, OUTSIDE
from engine.weights.gguf_file import BlockType, Metadata, read_header
from engine.weights.gguf_model import Model
from engine.weights.gguf_rope import ROPE_TABLES
from engine.weights.open_file import OpenFile
from engine.weights.safetensors import Checkpoint, StoredTensor
from engine.weights.shards import read_link

_OF_LIST = re.compile(r"\.\d+(?=\.\w+$)")  # the number of a module in a list, in a name
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class BlockTensor(StoredTensor):
    """The place of a tensor that is stored in blocks, as uint8 [..., bytes of a row]."""

    type: BlockType

    @property
    def dense_shape(self) -> tuple[int, ...]:
        """The shape of the tensor after its blocks are expanded."""
        blocks = self.shape[-1] // self.type.nbytes
        return (*self.shape[:-1], blocks * self.type.size)


class GgufCheckpoint(Checkpoint):
    """The tensors of the GGUF files that a folder has a link to, under the names in the files.

    `folder` is the path of the first file, for messages. The constructor raises `ModelError` if
    the files were changed since the folder was made, or are not one model.
    """

    metadata: Metadata  # of the first file, without its long lists
    remedy = "The file is damaged or of another model: download it again"

    def stored_name(self, name: str) -> str:
        """Return the name in the file of a tensor of the model."""
        parts = ARCHITECTURES[self.metadata["general.architecture"]].names.items()
        begin, _, rest = name.removeprefix("model.layers.").partition(".")
        for own, target in parts:
            if "." in own and rest == target:
                return f"blk.{begin}.{own}"
        rest, whole = (_OF_LIST.sub(".*", text).rpartition(".")[0] for text in (rest, name))
        suffix = name.rpartition(".")[2]
        found = [f"blk.{begin}.{part}" for part, target in parts if target == rest]
        found += [own for own, target in OUTSIDE.items() if target == whole]
        return f"{found[0]}.{suffix}" if found else name

    def heads(self, kind: str) -> int:
        """Return the number of heads of q or k."""
        model = Model(self.folder, self.metadata, {})
        heads = model.integer("attention.head_count")
        return max(1, heads if kind == "q" else model.integer("attention.head_count_kv", heads))

    def _read_headers(self) -> dict[str, StoredTensor]:
        paths = read_link(self.folder)
        self.folder = paths[0]
        tensors: dict[str, StoredTensor] = {}
        for path in paths:
            self._files[path] = file = OpenFile(path)
            header = read_header(file)
            if path == self.folder:
                values = header.metadata.items()
                self.metadata = {k: v for k, v in values if not k.startswith("tokenizer.")}
            for info in header.tensors:
                if info.name in ROPE_TABLES:  # they are in config.json
                    continue
                if info.name in tensors:
                    other = tensors[info.name].file.name
                    raise ModelError(f"{path}: {info.name} is in {other} too: not one model")
                tensors[info.name] = _stored(path, info.name, info.type, info.shape, info.offset)
        return tensors


def _stored(
    path: Path, name: str, type_: BlockType, shape: tuple[int, ...], offset: int
) -> StoredTensor:
    """Return the place of a tensor of dense shape `shape`."""
    row = shape[-1] // type_.size * type_.nbytes
    nbytes = torch.Size(shape[:-1]).numel() * row
    if (dtype := _PLAIN.get(type_.name)) is not None:
        return StoredTensor(name, path, dtype, shape, offset, nbytes)
    return BlockTensor(name, path, torch.uint8, (*shape[:-1], row), offset, nbytes, type_)
