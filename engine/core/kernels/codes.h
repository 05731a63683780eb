// Codes of pixel pairs for the table look-up (lut.h), in plain C++ that compilers make vectors of: a byte of each pixel
// becomes two codes. Included by isa_*.cpp only.
#pragma once

#include <cstdint>
#include <cstring>

namespace nasb {
namespace {

void pair_codes(const uint8_t* __restrict first, const uint8_t* __restrict second, uint16_t* __restrict codes,
                int count) {
  const auto two = [&](int i) {
    const uint32_t a = first[i], b = second[i];
    return (a & 15) << 4 | (a & 240) << 16 | (b & 15) << 9 | (b & 240) << 21;
  };
  for (int i = 0; i < count / 2; ++i) {
    const uint32_t both = two(i);
    std::memcpy(codes + 2 * i, &both, sizeof both);
  }
  if (count % 2) codes[count - 1] = static_cast<uint16_t>(two(count / 2));
}

}  // namespace
}  // namespace nasb
