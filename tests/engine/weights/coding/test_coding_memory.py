"""Coding a unit takes no more memory than plans count."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.malloc import give_back_freed
from engine.weights.coding.units import encode_unit
from engine.weights.layout import lay_out
from tests.engine.weights.coding.copies import copy_of
from tests.engine.weights.coding.kinds import of_bits, usual

SHAPE = (2048, 8192)
SLACK = 24 << 20  # of threads, and of memory that the allocator keeps


def status(key: str) -> int:
    """Return a size of this process in bytes."""
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


WEIGHTS: dict[str, Callable[..., Tensor]] = {
    "copy": usual,
    "no copy": usual,
    "useless copy": usual,  # which makes most weights escapes
    "any bits": lambda *shape: of_bits(torch.randint(-(1 << 15), 1 << 15, shape)),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_coding_takes_no_more_memory_than_the_plan_counts(kind: str) -> None:
    """The unit, its code, and the parts of that: `coding_bytes` without the copies."""
    torch.manual_seed(0)
    layout = lay_out("head", {"weight": (torch.bfloat16, SHAPE)})
    memory = torch.zeros(layout.nbytes, dtype=torch.uint8)
    weight = layout.views(memory)["weight"]
    weight.copy_(WEIGHTS[kind](*SHAPE))
    copied = usual(*SHAPE) * 1000 if kind == "useless copy" else weight
    copies = {} if kind == "no copy" else {"weight": copy_of(copied, "int4 64")}
    small = lay_out("small", {"weight": (torch.bfloat16, (64, SHAPE[1]))})
    encode_unit(small, memory, {})  # compiles code
    give_back_freed()  # else memory that other tests have freed is used again
    Path("/proc/self/clear_refs").write_text("5")  # the peak is measured from here on
    before = status("VmRSS")
    encode_unit(layout, memory, copies)
    taken = layout.nbytes + status("VmHWM") - before
    assert layout.nbytes < taken <= 2.5 * layout.nbytes + SLACK
