"""The stages in the order in which they run: those that decide the most come first.

A stage is a module with a function `run(lab, results)`. This file imports no torch.
"""

from dataclasses import dataclass
from typing import Literal

# What may run at the same time: "alone" nothing else on the device, because times are measured;
# "shared" other stages of this lane; "host" everything, because it does not use the device.
Lane = Literal["alone", "shared", "host"]

TEST_PROCESSES = 4
FULL_SUMS = ", sums in full precision"  # in the names of products with the library's option for it
OWN = "benchmarks.first_gpu_run"


@dataclass(frozen=True)
class Stage:
    """A part of the run that has a process, a time limit and a JSON file of its own.

    Args:
        seconds: the limit of its time. A stage ends itself before, if it can.
        module: the full name of the module whose `run` is called.
        part: what `run` does, if the module serves several stages.
        needs: the name of a stage that has to end before.
    """

    name: str
    about: str
    seconds: float
    module: str
    part: str = ""
    lane: Lane = "alone"
    needs: str | None = None


def _engine(part: str, about: str, seconds: float, module: str = f"{OWN}.engine_pace") -> Stage:
    name = f"engine_{part.replace(' ', '_')}"
    return Stage(name, about, seconds, module, part, needs="checkpoint")


STAGES: tuple[Stage, ...] = (
    Stage("checkpoint", "write the model of the engine's stages", 170, f"{OWN}.checkpoint",
          lane="host"),
    Stage("machine", "the device, the driver, the packages and the fastest rates", 30,
          f"{OWN}.machine"),
    Stage("engine_small", "a small model: whether the whole path runs", 50, f"{OWN}.engine_pace",
          "small"),
    Stage("rows", "whether a row's bits depend on its place", 45, f"{OWN}.rows"),
    Stage("products", "matrix products of 7 B against reading their bytes", 45,
          f"{OWN}.products"),
    Stage("link", "copies to the device by size, alone and beside kernels", 30, f"{OWN}.link"),
    _engine("ours fast", "our drafts, fast numerics, a trace of three cycles", 110),
    _engine("serial fast", "the serial SubSpec schedule, fast numerics", 60),
    _engine("ours strict", "our drafts, strict numerics", 60),
    _engine("plain strict", "no drafts, strict numerics", 50),
    _engine("plain fast", "no drafts, fast numerics", 50),
    *(
        Stage(f"tests_{number}", f"tests/gpu, part {number} of {TEST_PROCESSES}", 140,
              f"{OWN}.gpu_tests", str(number), lane="shared")
        for number in range(1, TEST_PROCESSES + 1)
    ),
    Stage("sanitizer", "tests of streams under torch's checker of races", 140,
          f"{OWN}.gpu_tests", "sanitizer", lane="shared"),
    Stage("attention", "attention of 7 B: time, memory and error by kernel", 40,
          f"{OWN}.attention"),
    _engine("memory", "device memory that runs out on purpose", 60, f"{OWN}.engine_memory"),
    Stage("latency", "launches, waits and graphs", 20, f"{OWN}.latency"),
    Stage("small_copies", "small copies beside large ones", 30, f"{OWN}.small_copies"),
    Stage("columns", "whether a product's bits survive a split of its outputs", 20,
          f"{OWN}.rows", "columns"),
    Stage("expansion", "packed weights against the link", 25, f"{OWN}.expansion"),
    Stage("coded_weights", "weights in lossless codes: their decoding and the link", 40,
          f"{OWN}.coded_weights"),
    _engine("coded strict", "our drafts, weights in lossless codes and plain ones in turn", 130,
            f"{OWN}.coded_engine"),
)  # fmt: skip
