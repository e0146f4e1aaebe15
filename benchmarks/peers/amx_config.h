// Included before each C++ file of llama.cpp.
//
// Old compilers, such as GCC 12, assume that `_tile_loadconfig` reads only 8 of its 64 bytes, and drop
// the stores to the others. llama.cpp then loads random bytes of the stack and ends with a segmentation
// fault at its first 4-bit product of several rows.
#pragma once
#if defined(__GNUC__) && !defined(__clang__) && defined(__AMX_TILE__)
#include <immintrin.h>
#define _tile_loadconfig(config) \
    __asm__ volatile("ldtilecfg %0" ::"m"(*reinterpret_cast<const char (*)[64]>(config)))
#endif
