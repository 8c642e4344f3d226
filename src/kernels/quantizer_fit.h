// What quantizer.simd.cc finds for a block and quantizer.cc packs into the format's bytes. Internal
// to src/kernels.
#pragma once

#include <stdint.h>

namespace fathom {

// y = d * scale[run] * level(code) + minimum * offset[run], where a format has these; `scale` and
// `offset` are those of its runs of 16 or 32, `code` counts the levels of the format from below.
struct BlockFit {
  float d, minimum;  // both exactly an f16; MXFP4: d is a power of two
  int scale[16], offset[16];
  uint8_t code[256];
};

}  // namespace fathom
