// Compiled with -mavx2 -mfma; run only where the processor has both.
#define VQKIT_BYTES 32
#include "tiles.h"
VQKIT_INSTRUCTIONS(avx2)
