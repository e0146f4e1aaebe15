"""Functions that numba compiles for the CPU when they are first used.

`compiler` says how code is compiled and where it is cached, `threads` divides work. Each other file
is a family of kernels. The functions that torch users call take tensors, and their callers in other
packages have a way of their own for machines without numba:

    if compiler.is_available():
        gguf_blocks.expand("Q4_K", blocks, out)  # out: float32, bfloat16 or float16
    else:
        ...  # operations of torch with the same bits

A kernel is written in the part of Python that numba compiles, with the types of its arguments:

    @helper
    def double(value):
        return np.float32(2) * value

    @kernel("void(f4[::1])")
    def double_all(values):
        for at in range(len(values)):
            values[at] = double(values[at])

Its bits must be those of the operations of torch that it replaces, which tests compare: the same
roundings in the same order. Three habits make kernels fast. A loop runs over a slice from its
start, since then no index can be negative. Integers get a type after each operation, because numba
widens them to 64 bits. Values are computed in float32 for a run of 512 of them, which stays in the
first cache, and `storing.write` rounds them.
"""
