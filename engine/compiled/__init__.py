"""Functions that numba compiles for the CPU when they are first used.

`compiler` decides how code is compiled and where it is cached, `filling` divides the rows of a
tensor among threads, `storing` rounds values. Each other file is a family of kernels, with a
function that takes tensors. Its callers also have operations of torch with the same bits, for
machines without numba and for other devices:

    if can_fill(out):  # on the CPU, of type float32, bfloat16 or float16
        gguf_blocks.expand("Q4_K", blocks, out)
    else:
        ...

A kernel is written in the part of Python that numba compiles, with the types of its arguments:

    @helper
    def double(value):
        return np.float32(2) * value

    @kernel("void(f4[::1])")
    def double_all(values):
        for at in range(len(values)):
            values[at] = double(values[at])

A new kernel has a test that compares its bits with those of the operations of torch: the same
roundings in the same order. Three habits made kernels several times faster:

- Places in arrays are of type uint64 (`range(_u8(16))`): numba checks others for negative numbers,
  and slices cost more than the 16 or 32 values of a block.
- Each operation on integers of 32 bits gets its type (`_i4(a + b)`), because numba widens to 64.
- A kernel computes a run of values in float32, which stays in the first cache, then
  `storing.write` rounds them.
"""
