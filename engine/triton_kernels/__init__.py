"""Functions that Triton compiles for CUDA devices when they are first used.

`compiler` decides how they are compiled and whether they can be. Kernels are in files named
`<name>_kernel`, which import Triton and are therefore imported by the functions that launch them,
never at the import of another module: Triton comes with the CUDA builds of torch only. The file
`<name>` next to it has the function that takes tensors.

    # double_kernel.py
    import triton.language as tl

    from engine.triton_kernels.compiler import kernel

    @kernel(aligned=("values",))
    def double(values: tl.tensor, count: tl.tensor, BLOCK: tl.constexpr) -> None:
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(values + at, tl.load(values + at, mask=at < count) * 2, mask=at < count)

In a kernel, annotations and global names are those of `tl`, helpers and `tl.constexpr` values.

A new kernel has two kinds of tests, which `make test-kernels` runs without a GPU: Triton's
interpreter compares it with operations of torch (`tests/kernels/interpreted`), and it is compiled
for several GPUs, which shows its registers and its shared memory (`tests/kernels/compiled`). The
interpreter of Triton 3.6 multiplies the raw bits of bfloat16 in `tl.dot`, so a kernel takes the
type of its products as a constant, which is float32 there.
"""
