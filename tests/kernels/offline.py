"""Compilation of kernels for GPUs that this machine does not have."""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Compute capability -> the most bytes of shared memory that a block may use, as CUDA's programming
# guide lists them.
SHARED_MEMORY = {
    80: 163 * 1024,
    86: 99 * 1024,
    89: 99 * 1024,
    90: 227 * 1024,
    120: 99 * 1024,
}
CAPABILITIES = tuple(SHARED_MEMORY)


@dataclass(frozen=True)
class Compiled:
    """What a compiled kernel needs of a GPU.

    Args:
        registers: of a thread.
        spilled: the bytes of a thread that did not fit the registers.
        shared: the bytes of shared memory of a block.
        ptx: the code before it is compiled for one kind of GPU.
        sass: the instructions of the GPU, with the addresses and encodings removed.
    """

    registers: int
    spilled: int
    shared: int
    ptx: str
    sass: str


def compile_offline(
    kernel: Any,
    capability: int,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    **options: Any,
) -> Compiled:
    """Compile a kernel for a GPU, and return what it needs.

    Args:
        kernel: what `engine.triton_kernels.compiler.kernel` returned, outside the interpreter.
        capability: the compute capability of the GPU, without its point.
        types: Triton's names of the types of the arguments, such as "*bf16" and "i32".
        constants: the values of the `tl.constexpr` arguments.
        options: of a launch, such as `num_warps`.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {p.name: "constexpr" if p.is_constexpr else types[p.name] for p in kernel.params}
    attributes = {
        (p.num,): [["tt.divisibility", 16]]
        for p in kernel.params
        if not p.is_constexpr and not p.do_not_specialize
    }
    source = ASTSource(kernel, signature, dict(constants), attributes)
    done = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(done.asm["cubin"])
        file.flush()
        usage = _cuda_tool("cuobjdump", "--dump-resource-usage", file.name)
        sass = _cuda_tool("cuobjdump", "--dump-sass", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", usage)
    assert found is not None, usage
    registers, stack, local = map(int, found.groups())
    return Compiled(
        registers, stack + local, done.metadata.shared, done.asm["ptx"], _instructions(sass)
    )


def _cuda_tool(name: str, *arguments: str) -> str:
    """Return what a program of CUDA prints. Triton's package contains it."""
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout


def _instructions(sass: str) -> str:
    return "\n".join(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.*?;)", sass))
