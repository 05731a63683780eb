// Codes of pixel pairs for the table look-up (lut.h), in plain C++ that compilers make vectors of: a byte of each pixel
// becomes two codes. Included by isa_*.cpp only.
#pragma once

#include <cstdint>

namespace nasb {
namespace {

void pair_codes(const uint8_t* __restrict first, const uint8_t* __restrict second, uint16_t* __restrict codes,
                int count) {
  for (int i = 0; i < count / 2; ++i) {
    const uint16_t a = first[i], b = second[i];
    codes[2 * i] = static_cast<uint16_t>((a & 15) << 4 | (b & 15) << 9);
    codes[2 * i + 1] = static_cast<uint16_t>((a & 240) | (b & 240) << 5);
  }
  if (count % 2) codes[count - 1] = static_cast<uint16_t>((first[count / 2] & 15) << 4 | (second[count / 2] & 15) << 9);
}

}  // namespace
}  // namespace nasb
