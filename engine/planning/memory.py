"""The memory of a machine, and how much of it a plan may use."""

from dataclasses import dataclass

from engine.spec import ModelSpec


@dataclass(frozen=True)
class Memory:
    """The memory of a machine, in bytes; `device` is a part of `ram` unless it has its own."""

    device: int
    ram: int
    has_own_memory: bool  # the device's, beside the RAM
    device_runtime: int = 0  # held on the device by driver and libraries; not part of `device`
    stream_workspace: int = 0  # that libraries keep on the device for each stream that computes
    host_runtime: int = 0  # held by the process before it loads weights; not part of `ram`
    loading: int = 0  # RAM that may be taken for a while at load; 0: no more than `ram`
    code: int = 0  # RAM that compiled code will take when it is first needed; not part of `ram`


def device_limit(spec: ModelSpec, memory: Memory) -> int:
    """Return the device bytes that a plan may use: memory.device, or less if less is available.

    In a device's own memory, memory.device includes the runtime. In RAM it may be more than the
    share that is used by default.
    """
    if spec.memory.device is None:
        return memory.device
    if not memory.has_own_memory:
        return min(spec.memory.device, memory.ram)
    return min(spec.memory.device - memory.device_runtime, memory.device)
