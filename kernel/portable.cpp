// For whatever the compiler aims at by itself: SSE2 on x86-64, NEON on arm64.
#define VQKIT_BYTES 16
#include "tiles.h"
VQKIT_INSTRUCTIONS(portable)
