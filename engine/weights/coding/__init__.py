"""Lossless codes of bfloat16 weights, which travel in fewer bits and are decoded to the same bits.

docs/coded-streaming.md defines both codes. `cells` codes a weight by what its 4-bit copy does not
tell of it, in about 7 bits; `exponents` needs no copy, and takes about 12 bits. A coded weight is a
dictionary of tensors by the suffixes of their names. Compiled code decodes on a CPU, and kernels of
Triton on a GPU; operations of torch give the same bits where there are none.
"""
