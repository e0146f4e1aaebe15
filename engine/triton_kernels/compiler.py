"""How kernels are compiled for a CUDA device: by Triton, each one when it is first launched.

Triton compiles a kernel once for each set of constants and of types of its arguments. By default
it also compiles other code for numbers that are 1 or divisible by 16, and for addresses divisible
by 16. Here it does not: the number of rows, or a place in memory, would then choose the code that
computes a row, and so its bits.
"""

import inspect
import logging
from collections.abc import Callable, Collection
from importlib.util import find_spec
from typing import Any

import torch

from engine.errors import ModelError
from engine.library_call import library_call

log = logging.getLogger(__name__)

_LEAST_CAPABILITY = (8, 0)  # of the GPUs that Triton compiles for


def is_installed() -> bool:
    """Return whether Triton can be imported. It is not imported here."""
    return find_spec("triton") is not None


def can_run(device: torch.device, instead: str, trial: Callable[[], None]) -> bool:
    """Return whether kernels can be compiled for a CUDA device and run on it.

    Triton finds out only when a kernel is launched: it needs a C compiler, Python's header files
    and a driver that suits it. If it fails, the log says why and what happens instead.

    Args:
        instead: what is computed without Triton, and how, as the beginning of a sentence.
        trial: launches a kernel, and returns when it has run.
    """
    capability = torch.cuda.get_device_capability(device)
    if not is_installed():
        reason = "Triton is not installed"
    elif capability < _LEAST_CAPABILITY:
        reason = f"the GPU's compute capability is {capability[0]}.{capability[1]}, below 8.0"
    else:
        try:
            with library_call("Triton"):
                trial()
        except ModelError as error:
            reason = str(error)
        else:
            return True
    log.warning(
        "%s: %s, which is slower (%s). Triton is a part of PyTorch's CUDA builds, and needs a C "
        "compiler such as gcc",
        device,
        instead,
        reason,
    )
    return False


def kernel(*, aligned: Collection[str] = ()) -> Callable[[Callable[..., None]], Any]:
    """Return a decorator that lets Triton compile a function when it is launched.

    Args:
        aligned: names of the arguments that are tensors whose addresses are always divisible by 16,
            so that code may read 16 bytes at once. The function that launches the kernel checks
            this.
    """

    def decorate(function: Callable[..., None]) -> Any:
        import triton

        parameters = inspect.signature(function).parameters.values()
        others = [
            parameter.name
            for parameter in parameters
            if parameter.annotation is not triton.language.constexpr
            and parameter.name not in aligned
        ]
        return triton.jit(function, do_not_specialize=others)

    return decorate


def helper(function: Callable[..., Any]) -> Any:
    """Let kernels call a function. It becomes a part of them when they are compiled."""
    import triton

    return triton.jit(function)
