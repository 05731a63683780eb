// The classic way to run a binary 3x3 convolution on AVX2, as a baseline: signs packed 64 a word, xor, popcount by a table of
// nibbles (pshufb), horizontal sums by psadbw. Float in and float out, channels last, stride 1, border +1.
//   dot = K - 2 popcount(a ^ w), K = 9 C; y = scale * dot + bias
// Tuned as far as the method goes: a row of bits for each output pixel made once, 2 pixels x 4 channels in registers, byte
// counters that are summed once (a byte gains at most 8 a vector, so 31 vectors fit), the rest of a row a word of 4 channels at a time.
// Build: g++ -O3 -mavx2 -mfma -shared -fPIC
#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

constexpr int kPixels = 2, kOutputs = 4;

struct Layer {
  int channels, size, words, vectors, rest;  // words = 9 C / 64 = 4 vectors + rest
  uint64_t* weights;  // [C / 4][vectors][4][4 words], then [rest][4]
  uint64_t *packed, *rows;  // [(size + 2)^2][C / 64]; [pixels of one output row, even][words]
  float *scale, *bias;
};

template <class T>
T* make(size_t n) {
  void* p = std::aligned_alloc(64, (n * sizeof(T) + 63) / 64 * 64);
  std::memset(p, 0, n * sizeof(T));
  return static_cast<T*>(p);
}

inline __m256i bit_counts(__m256i x) {
  const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i low = _mm256_set1_epi8(15);
  return _mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(x, low)),
                         _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), low)));
}

// Four vectors of byte counters to four sums.
inline __m128i totals(const __m256i* counters) {
  const __m256i zero = _mm256_setzero_si256();
  const __m256i ab = _mm256_packs_epi32(_mm256_sad_epu8(counters[0], zero), _mm256_sad_epu8(counters[1], zero));
  const __m256i cd = _mm256_packs_epi32(_mm256_sad_epu8(counters[2], zero), _mm256_sad_epu8(counters[3], zero));
  const __m256i sums = _mm256_hadd_epi32(_mm256_madd_epi16(ab, _mm256_set1_epi16(1)), _mm256_madd_epi16(cd, _mm256_set1_epi16(1)));
  return _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
}

inline void tile(const Layer& l, const uint64_t* row, int pixels, int output, float* y) {
  const uint64_t* w = l.weights + static_cast<size_t>(output) * l.words;
  __m256i counters[kPixels][kOutputs];
  for (int p = 0; p < kPixels; ++p)
    for (int o = 0; o < kOutputs; ++o) counters[p][o] = _mm256_setzero_si256();
  const uint64_t* second = row + (pixels > 1 ? l.words : 0);
  for (int v = 0; v < l.vectors; ++v, w += 16) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 4 * v));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second + 4 * v));
    for (int o = 0; o < kOutputs; ++o) {
      const __m256i weight = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + 4 * o));
      counters[0][o] = _mm256_add_epi8(counters[0][o], bit_counts(_mm256_xor_si256(a, weight)));
      counters[1][o] = _mm256_add_epi8(counters[1][o], bit_counts(_mm256_xor_si256(b, weight)));
    }
  }
  const __m128 scale = _mm_loadu_ps(l.scale + output), bias = _mm_loadu_ps(l.bias + output);
  for (int p = 0; p < pixels; ++p) {
    const uint64_t* tail = (p ? second : row) + 4 * l.vectors;
    __m256i rest = _mm256_setzero_si256();  // a word of each of the four outputs
    for (int i = 0; i < l.rest; ++i) {
      const __m256i weight = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + kOutputs * i));
      rest = _mm256_add_epi8(rest, bit_counts(_mm256_xor_si256(_mm256_set1_epi64x(static_cast<int64_t>(tail[i])), weight)));
    }
    rest = _mm256_permutevar8x32_epi32(_mm256_sad_epu8(rest, _mm256_setzero_si256()), _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
    const __m128i count = _mm_add_epi32(totals(counters[p]), _mm256_castsi256_si128(rest));
    const __m128i dot = _mm_sub_epi32(_mm_set1_epi32(64 * l.words), _mm_slli_epi32(count, 1));
    _mm_storeu_ps(y + static_cast<size_t>(p) * l.channels + output, _mm_fmadd_ps(_mm_cvtepi32_ps(dot), scale, bias));
  }
}

}  // namespace

extern "C" {

// signs: [C][9][C] bytes, 1 for -1. C a multiple of 64, at most 31 * 256 / 9 channels.
void* popcount_create(int channels, int size, const uint8_t* signs, const float* scale, const float* bias) {
  Layer* l = new Layer{channels, size, 9 * channels / 64, 0, 0, nullptr, nullptr, nullptr, nullptr, nullptr};
  l->vectors = (l->words + 1) / 4;
  if (4 * l->vectors > l->words) --l->vectors;
  l->rest = l->words - 4 * l->vectors;
  l->weights = make<uint64_t>(static_cast<size_t>(channels) * l->words);
  l->packed = make<uint64_t>(static_cast<size_t>(size + 2) * (size + 2) * channels / 64);
  l->rows = make<uint64_t>(static_cast<size_t>(size + 1) * l->words);
  l->scale = make<float>(channels), l->bias = make<float>(channels);
  std::memcpy(l->scale, scale, sizeof(float) * channels);
  std::memcpy(l->bias, bias, sizeof(float) * channels);
  for (int o = 0; o < channels; ++o)
    for (int i = 0; i < 9 * channels; ++i) {
      if (!signs[static_cast<size_t>(o) * 9 * channels + i]) continue;
      const int word = i / 64, own = o % kOutputs;
      uint64_t* block = l->weights + static_cast<size_t>(o - own) * l->words;
      const int at = word < 4 * l->vectors ? word / 4 * 16 + own * 4 + word % 4 : 16 * l->vectors + (word - 4 * l->vectors) * kOutputs + own;
      block[at] |= uint64_t{1} << (i % 64);
    }
  return l;
}

// x, y: [size][size][C]
void popcount_run(void* layer, const float* x, float* y) {
  const Layer& l = *static_cast<const Layer*>(layer);
  const int per = l.channels / 64, side = l.size + 2;
  const __m256 zero = _mm256_setzero_ps();
  for (int r = 0; r < l.size; ++r) {
    const float* from = x + static_cast<size_t>(r) * l.size * l.channels;
    uint64_t* to = l.packed + (static_cast<size_t>(r + 1) * side + 1) * per;
    for (int i = 0; i < l.size * per; ++i, from += 64) {
      uint64_t bits = 0;
      for (int v = 0; v < 8; ++v)
        bits |= static_cast<uint64_t>(_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(from + 8 * v), zero, _CMP_NGE_UQ))) << (8 * v);
      to[i] = bits;
    }
  }
  for (int r = 0; r < l.size; ++r) {
    for (int c = 0; c < l.size; ++c)
      for (int k = 0; k < 3; ++k)
        std::memcpy(l.rows + static_cast<size_t>(c) * l.words + 3 * k * per, l.packed + (static_cast<size_t>(r + k) * side + c) * per,
                    sizeof(uint64_t) * 3 * per);
    float* out = y + static_cast<size_t>(r) * l.size * l.channels;
    for (int o = 0; o < l.channels; o += kOutputs)
      for (int c = 0; c < l.size; c += kPixels)
        tile(l, l.rows + static_cast<size_t>(c) * l.words, l.size - c < kPixels ? 1 : kPixels, o, out + static_cast<size_t>(c) * l.channels);
  }
}

void popcount_destroy(void* layer) {
  Layer* l = static_cast<Layer*>(layer);
  std::free(l->weights), std::free(l->packed), std::free(l->rows), std::free(l->scale), std::free(l->bias);
  delete l;
}
}
