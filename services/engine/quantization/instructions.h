// Sixteen lanes of whole numbers and floats, and the product of unsigned codes with signed 8-bit inputs, for each
// instruction set that this library is compiled for.
#pragma once

#include <c10/util/Half.h>

#include <bit>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
#define PARLEY_AVX2 1
#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define PARLEY_AVX512_VNNI 1
#endif
#endif

#define PARLEY_INLINE inline __attribute__((always_inline))

namespace {

constexpr int64_t LANES = 16;       // outputs that lie side by side
constexpr int64_t FOUR = 4;         // inputs that one instruction adds up
constexpr int64_t LINE = LANES * FOUR; // bytes: codes of FOUR inputs for all lanes

// Each has: Ints and Sums of LANES numbers, Codes of a LINE. ZERO: what `dot` takes off from codes of 8 bits.
// `shifted<BITS>` moves the bits of each code left (right where negative); what crosses into the neighbour must be
// masked off.

// By the compiler's own vectors, which become what the processor has.
struct Portable {
  static constexpr int64_t ROWS = 1;
  static constexpr int32_t ZERO = 0;
  typedef int32_t Ints __attribute__((vector_size(LANES * sizeof(int32_t))));
  typedef float Sums __attribute__((vector_size(LANES * sizeof(float))));
  typedef uint8_t Codes __attribute__((vector_size(LINE)));

  static PARLEY_INLINE Ints all(int32_t value) { return Ints{} + value; }
  static PARLEY_INLINE Codes load(const uint8_t* from) { return copied<Codes>(from); }
  template <int BITS>
  static PARLEY_INLINE Codes shifted(const Codes& codes, uint8_t mask) {
    if constexpr (BITS >= 0) return (codes << BITS) & mask;
    else return (codes >> -BITS) & mask;
  }
  static PARLEY_INLINE Codes either(const Codes& one, const Codes& other) { return one | other; }
  template <int BITS>
  static PARLEY_INLINE Ints dot(Ints sum, const Codes& codes, const int8_t* four) {
    static_assert(std::endian::native == std::endian::little);
    const auto fours = copied<Ints>(&codes);
    for (int i = 0; i < FOUR; ++i) sum += ((fours >> 8 * i) & 255) * int32_t(four[i]);
    return sum;
  }
  static PARLEY_INLINE Sums read(const float* from) { return copied<Sums>(from); }
  static PARLEY_INLINE Sums read(const c10::Half* from) {
    Sums out;
    for (int64_t lane = 0; lane < LANES; ++lane) out[lane] = from[lane];
    return out;
  }
  static PARLEY_INLINE void write(const Sums& sums, float* to) { std::memcpy(to, &sums, sizeof sums); }
  static PARLEY_INLINE Sums add(const Sums& sum, const Ints& part, const Sums& scales, float by) {
    return sum + __builtin_convertvector(part, Sums) * (scales * by);
  }
  static PARLEY_INLINE Sums add(const Sums& sum, const Sums& minima, float by) { return sum + minima * by; }

 private:
  template <typename To>
  static PARLEY_INLINE To copied(const void* from) {
    To out;
    std::memcpy(&out, from, sizeof out);
    return out;
  }
};

#ifdef PARLEY_AVX2
struct Avx2 {
  static constexpr int64_t ROWS = 2;
  struct Ints {
    __m256i half[2];
  };
  struct Sums {
    __m256 half[2];
  };
  struct Codes {
    __m256i half[2];
  };
#ifdef __AVXVNNI__
  static constexpr int32_t ZERO = 0;
#else
  static constexpr int32_t ZERO = 128; // sums of two products of 8 bits must fit into 16: both signed
#endif

  static PARLEY_INLINE Ints all(int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
  static PARLEY_INLINE Codes load(const uint8_t* from) {
    const auto* at = reinterpret_cast<const __m256i*>(from);
    return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
  }
  template <int BITS>
  static PARLEY_INLINE Codes shifted(const Codes& codes, uint8_t mask) {
    const __m256i kept = _mm256_set1_epi8(static_cast<char>(mask));
    return {_mm256_and_si256(moved<BITS>(codes.half[0]), kept), _mm256_and_si256(moved<BITS>(codes.half[1]), kept)};
  }
  static PARLEY_INLINE Codes either(const Codes& one, const Codes& other) {
    return {_mm256_or_si256(one.half[0], other.half[0]), _mm256_or_si256(one.half[1], other.half[1])};
  }
  template <int BITS>
  static PARLEY_INLINE Ints dot(const Ints& sum, const Codes& codes, const int8_t* four) {
    int32_t bytes;
    std::memcpy(&bytes, four, FOUR);
    const __m256i inputs = _mm256_set1_epi32(bytes);
    return {dot<BITS>(sum.half[0], codes.half[0], inputs), dot<BITS>(sum.half[1], codes.half[1], inputs)};
  }
  static PARLEY_INLINE Sums read(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
  static PARLEY_INLINE Sums read(const c10::Half* from) {
    const auto* at = reinterpret_cast<const __m128i*>(from);
    return {_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at + 1))};
  }
  static PARLEY_INLINE void write(const Sums& sums, float* to) {
    _mm256_storeu_ps(to, sums.half[0]), _mm256_storeu_ps(to + 8, sums.half[1]);
  }
  static PARLEY_INLINE Sums add(const Sums& sum, const Ints& part, const Sums& scales, float by) {
    const __m256 all = _mm256_set1_ps(by);
    return {_mm256_fmadd_ps(_mm256_cvtepi32_ps(part.half[0]), _mm256_mul_ps(scales.half[0], all), sum.half[0]),
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(part.half[1]), _mm256_mul_ps(scales.half[1], all), sum.half[1])};
  }
  static PARLEY_INLINE Sums add(const Sums& sum, const Sums& minima, float by) {
    const __m256 all = _mm256_set1_ps(by);
    return {_mm256_fmadd_ps(minima.half[0], all, sum.half[0]), _mm256_fmadd_ps(minima.half[1], all, sum.half[1])};
  }

 private:
  template <int BITS>
  static PARLEY_INLINE __m256i moved(__m256i codes) {
    if constexpr (BITS > 0) return _mm256_slli_epi16(codes, BITS);
    else if constexpr (BITS < 0) return _mm256_srli_epi16(codes, -BITS);
    else return codes;
  }
  template <int BITS>
  static PARLEY_INLINE __m256i dot(__m256i sum, __m256i codes, __m256i inputs) {
#ifdef __AVXVNNI__
    return _mm256_dpbusd_avx_epi32(sum, codes, inputs);
#else
    if constexpr (BITS == 8) {
      const __m256i weights = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
      inputs = _mm256_sign_epi8(inputs, weights), codes = _mm256_abs_epi8(weights);
    }
    const __m256i pairs = _mm256_maddubs_epi16(codes, inputs);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
  }
};
#endif

#ifdef PARLEY_AVX512_VNNI
struct Avx512Vnni {
  static constexpr int64_t ROWS = 4; // of two panels: so many sums fit into registers
  static constexpr int32_t ZERO = 0;
  using Ints = __m512i;
  using Sums = __m512;
  using Codes = __m512i;

  static PARLEY_INLINE Ints all(int32_t value) { return _mm512_set1_epi32(value); }
  static PARLEY_INLINE Codes load(const uint8_t* from) { return _mm512_loadu_si512(from); }
  template <int BITS>
  static PARLEY_INLINE Codes shifted(Codes codes, uint8_t mask) {
    if constexpr (BITS > 0) codes = _mm512_slli_epi16(codes, BITS);
    if constexpr (BITS < 0) codes = _mm512_srli_epi16(codes, -BITS);
    return _mm512_and_si512(codes, _mm512_set1_epi8(static_cast<char>(mask)));
  }
  static PARLEY_INLINE Codes either(Codes one, Codes other) { return _mm512_or_si512(one, other); }
  template <int BITS>
  static PARLEY_INLINE Ints dot(Ints sum, Codes codes, const int8_t* four) {
    int32_t inputs;
    std::memcpy(&inputs, four, FOUR);
    return _mm512_dpbusd_epi32(sum, codes, all(inputs));
  }
  static PARLEY_INLINE Sums read(const float* from) { return _mm512_loadu_ps(from); }
  static PARLEY_INLINE Sums read(const c10::Half* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static PARLEY_INLINE void write(Sums sums, float* to) { _mm512_storeu_ps(to, sums); }
  static PARLEY_INLINE Sums add(Sums sum, Ints part, Sums scales, float by) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(part), _mm512_mul_ps(scales, _mm512_set1_ps(by)), sum);
  }
  static PARLEY_INLINE Sums add(Sums sum, Sums minima, float by) {
    return _mm512_fmadd_ps(minima, _mm512_set1_ps(by), sum);
  }
};
#endif

} // namespace
