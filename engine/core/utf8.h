// What is text in UTF-8.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nasb {

// Length of the valid UTF-8 sequence that begins at text[0] (Unicode 15, table 3-7); 0 if it is not one.
inline size_t utf8_length(const uint8_t* text, size_t left) {
  const uint8_t first = text[0];
  if (first < 0x80) return 1;
  const size_t length = first >= 0xC2 && first <= 0xDF   ? 2
                        : (first & 0xF0) == 0xE0         ? 3
                        : first >= 0xF0 && first <= 0xF4 ? 4
                                                         : 0;
  if (length == 0 || left < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((text[i] & 0xC0) != 0x80) return 0;
  }
  // Overlong forms, surrogates and code points above 10FFFF.
  if ((first == 0xE0 && text[1] < 0xA0) || (first == 0xED && text[1] > 0x9F)) return 0;
  if ((first == 0xF0 && text[1] < 0x90) || (first == 0xF4 && text[1] > 0x8F)) return 0;
  return length;
}

}  // namespace nasb
