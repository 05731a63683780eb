// Plain C++: works everywhere, and is what the other instruction sets are checked against. It has no look-up: a machine
// without a byte shuffle is served better by xor and popcount (binary_conv.cpp).
#include "gemm.h"

namespace nasb {
namespace {

struct Floats {
  static constexpr int kLanes = 8;
  float v[8];
  static Floats load(const float* p) { return load_part(p, 8); }
  static Floats load_part(const float* p, int n) {
    Floats r;
    for (int i = 0; i < 8; ++i) r.v[i] = i < n ? p[i] : 0;
    return r;
  }
  static Floats fill(float x) {
    Floats r;
    for (int i = 0; i < 8; ++i) r.v[i] = x;
    return r;
  }
  void store(float* p) const { store_part(p, 8); }
  void store_part(float* p, int n) const {
    for (int i = 0; i < 8 && i < n; ++i) p[i] = v[i];
  }
  Floats operator+(Floats o) const {
    for (int i = 0; i < 8; ++i) o.v[i] = v[i] + o.v[i];
    return o;
  }
  Floats operator*(Floats o) const {
    for (int i = 0; i < 8; ++i) o.v[i] = v[i] * o.v[i];
    return o;
  }
  static Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }
  static Floats max(Floats y, Floats x) {
    for (int i = 0; i < 8; ++i) y.v[i] = x.v[i] > y.v[i] || x.v[i] != x.v[i] ? x.v[i] : y.v[i];
    return y;
  }
  static Floats relu(Floats x) {
    for (int i = 0; i < 8; ++i) x.v[i] = x.v[i] < 0 ? 0 : x.v[i];
    return x;
  }
  static Floats negative_or(Floats x, Floats y) {
    for (int i = 0; i < 8; ++i) y.v[i] = x.v[i] < 0 ? y.v[i] : x.v[i];
    return y;
  }
  static int below(Floats x, Floats t) {
    int bits = 0;
    for (int i = 0; i < 8; ++i) bits |= !(x.v[i] >= t.v[i]) << i;
    return bits;
  }
};

void pair_codes(const uint8_t* first, const uint8_t* second, uint16_t* codes, int count) {
  for (int i = 0; i < count; ++i) codes[i] = static_cast<uint16_t>(first[i] << 4 | second[i] << 9);
}

}  // namespace

const Isa& isa_portable() {
  static const Isa isa = {"portable", epilogue<Floats>,        pair_codes,      nullptr,     nullptr, 16,
                          gemm_tile<Floats, 2, 2>, pool<Floats>, depthwise<Floats>};
  return isa;
}

}  // namespace nasb
