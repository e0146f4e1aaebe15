"""Measure how many bits a coded weight has, and how long packing takes, by kind of 4-bit copy."""

import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.random_model import Checkpoint, forget_pages
from engine.drafting.model.substitutes import SubstituteUnits
from engine.messages import LoadProgress
from engine.runtime.target_files import TargetFiles
from engine.spec import DraftSpec, ModelSpec, TargetSpec
from engine.streaming.coded import CodedUnits
from engine.streaming.packed import PackedUnits, pack
from engine.weights.formats.linear import Kernel
from engine.weights.layout import UnitReader, WholeLayers

FORMS: tuple[tuple[str, Kernel | None, int], ...] = (
    ("int4, groups of 32", "int4", 32),
    ("int4, groups of 64", "int4", 64),
    ("nf4", "nf4", 64),
    ("no copy", None, 0),
)


@dataclass(frozen=True)
class Packing:
    """The size of all units by one kind of 4-bit copy, and the median seconds of packing them."""

    form: str
    bits: float  # of a weight of the units
    of_units: float  # coded bytes over plain ones
    of_model: float  # the same of the whole checkpoint, whose embedding and norms stay plain
    copying_s: float  # of making the 4-bit copies, without calibration
    plain_s: float
    coded_s: float

    @property
    def ratio(self) -> float:
        """Return how many times as long coding the weights takes as packing plain ones."""
        return self.coded_s / self.plain_s

    @property
    def ratio_with_copies(self) -> float:
        """Return the same with the seconds of the 4-bit copies on both sides."""
        return (self.copying_s + self.coded_s) / (self.copying_s + self.plain_s)


def measure_packing(checkpoint: Checkpoint, folder: Path, rounds: int) -> list[Packing]:
    """Pack the checkpoint's units plainly and coded, in turn, by each kind of 4-bit copy."""
    shutil.rmtree(folder, ignore_errors=True)
    spec = ModelSpec(
        "coded", TargetSpec(str(checkpoint.folder)), DraftSpec(method="none"), device="cpu"
    )
    with torch.inference_mode():
        files = TargetFiles(spec, _ignore)
        try:
            return [_measure(files, checkpoint, folder, form, rounds) for form in FORMS]
        finally:
            files.units.close()
            shutil.rmtree(folder, ignore_errors=True)


def _measure(
    files: TargetFiles,
    checkpoint: Checkpoint,
    folder: Path,
    form: tuple[str, Kernel | None, int],
    rounds: int,
) -> Packing:
    name, kernel, group = form
    units = files.units
    copying_s, copies = 0.0, None
    if kernel is not None:
        made = _copies(files, kernel, group)
        copies, copying_s = _pack(made, folder / "copies", checkpoint.folder)
    coded_units = CodedUnits(units, units.layers, copies)
    head = len(units.layouts) - 1
    # Code is compiled or loaded now. An engine does that before, when it measures the decoder.
    coded_units.make(head, torch.empty(max(own.nbytes for own in units.layouts), dtype=torch.uint8))
    seconds: dict[str, list[float]] = {"plain": [], "coded": []}
    for _ in range(max(rounds, 1)):
        for kind, reader in (("plain", units), ("coded", coded_units)):
            packed, taken = _pack(reader, folder / kind, checkpoint.folder)
            seconds[kind].append(taken)
            nbytes = sum(layout.nbytes for layout in packed.layouts)
            packed.close()
            shutil.rmtree(folder / kind)
    if copies is not None:
        copies.close()
        shutil.rmtree(folder / "copies")
    plain = sum(layout.nbytes for layout in units.layouts)
    return Packing(
        name,
        bits=16 * nbytes / plain,
        of_units=nbytes / plain,
        of_model=1 - (plain - nbytes) / checkpoint.nbytes,
        copying_s=copying_s,
        plain_s=statistics.median(seconds["plain"]),
        coded_s=statistics.median(seconds["coded"]),
    )


def _copies(files: TargetFiles, kernel: Kernel, group: int) -> SubstituteUnits:
    """Return a reader that makes 4-bit copies of the matrices of all layers and of the head."""
    layers = WholeLayers(files.units, files.units.layers)
    paths = [
        [field.name.removesuffix("weight").removesuffix(".") for field in layout.fields]
        for layout in layers.layouts
    ]
    matrices = [
        [path for path, field in zip(own, layout.fields, strict=True) if len(field.shape) == 2]
        for own, layout in zip(paths, layers.layouts, strict=True)
    ]
    here = files.device.torch_device
    return SubstituteUnits(
        layers, matrices, group=group, kernel=kernel, device=here, dtype=files.dtype
    )


def _pack(reader: UnitReader, folder: Path, source: Path) -> tuple[PackedUnits, float]:
    """Pack units that no cache of the system holds; return them and the seconds."""
    forget_pages(source)
    began = time.perf_counter()
    packed = pack(reader, folder, "coded", _ignore)
    return packed, time.perf_counter() - began


def _ignore(step: LoadProgress) -> None:
    """Ignore the progress."""
