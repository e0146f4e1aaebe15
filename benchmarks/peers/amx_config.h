// Included before each C++ file of llama.cpp.
//
// Old compilers (GCC 12 among them) take `_tile_loadconfig` to read 8 of its 64 bytes, so that they
// drop the stores to the others: llama.cpp then loads what is on the stack, which ends it with a
// segmentation fault at its first 4-bit product of several rows.
#pragma once
#if defined(__GNUC__) && !defined(__clang__) && defined(__AMX_TILE__)
#include <immintrin.h>
#define _tile_loadconfig(config) \
    __asm__ volatile("ldtilecfg %0" ::"m"(*reinterpret_cast<const char (*)[64]>(config)))
#endif
