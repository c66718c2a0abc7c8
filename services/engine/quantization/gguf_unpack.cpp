// Blocks of GGUF's types as codes, scales and minima; the layouts are those of ggml-common.h of llama.cpp.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>

namespace {

constexpr int64_t GRAIN = 1 << 16; // weights that are worth a thread

inline float half_at(const uint8_t* at) {
  c10::Half value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// `width` bytes: the lower halves, then the upper ones.
inline void nibbles(const uint8_t* from, int width, uint8_t* codes) {
#pragma omp simd
  for (int i = 0; i < width; ++i) codes[i] = from[i] & 15, codes[width + i] = from[i] >> 4;
}

inline void fifth_bits(const uint8_t* from, uint8_t* codes) {
  uint32_t bits;
  std::memcpy(&bits, from, sizeof bits);
  for (int i = 0; i < 32; ++i) codes[i] |= (bits >> i & 1) << 4;
}

// The J-th of 8 scales and minima of 6 bits in 12 bytes.
inline std::tuple<int, int> scale_and_minimum(const uint8_t* packed, int j) {
  if (j < 4) return {packed[j] & 63, packed[j + 4] & 63};
  return {(packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4, packed[j + 4] >> 4 | (packed[j] >> 6) << 4};
}

inline void scales_and_minima(const uint8_t* block, float* scales, float* minima) {
  const float d = half_at(block), least = half_at(block + 2);
  for (int j = 0; j < 8; ++j) {
    const auto [scale, minimum] = scale_and_minimum(block + 4, j);
    scales[j] = d * float(scale), minima[j] = -(least * float(minimum));
  }
}

// Each unpacks one block: SIZE weights in BYTES, with a scale for each GROUP.
template <bool MINIMA>
struct Q4 {
  static constexpr int64_t SIZE = 32, BYTES = MINIMA ? 20 : 18, GROUP = 32;
  static constexpr bool HAS_MINIMA = MINIMA;
  static void unpack(const uint8_t* block, uint8_t* codes, float* scales, float* minima) {
    scales[0] = half_at(block);
    if (MINIMA) minima[0] = half_at(block + 2);
    nibbles(block + BYTES - 16, 16, codes);
  }
};

template <bool MINIMA>
struct Q5 {
  static constexpr int64_t SIZE = 32, BYTES = MINIMA ? 24 : 22, GROUP = 32;
  static constexpr bool HAS_MINIMA = MINIMA;
  static void unpack(const uint8_t* block, uint8_t* codes, float* scales, float* minima) {
    scales[0] = half_at(block);
    if (MINIMA) minima[0] = half_at(block + 2);
    nibbles(block + BYTES - 16, 16, codes);
    fifth_bits(block + BYTES - 20, codes);
  }
};

struct Q8 {
  static constexpr int64_t SIZE = 32, BYTES = 34, GROUP = 32;
  static constexpr bool HAS_MINIMA = false;
  static void unpack(const uint8_t* block, uint8_t* codes, float* scales, float*) {
    scales[0] = half_at(block);
#pragma omp simd
    for (int i = 0; i < 32; ++i) codes[i] = block[2 + i] ^ 128;
  }
};

struct Q4K {
  static constexpr int64_t SIZE = 256, BYTES = 144, GROUP = 32;
  static constexpr bool HAS_MINIMA = true;
  static void unpack(const uint8_t* block, uint8_t* codes, float* scales, float* minima) {
    scales_and_minima(block, scales, minima);
    for (int i = 0; i < 4; ++i) nibbles(block + 16 + 32 * i, 32, codes + 64 * i);
  }
};

struct Q5K {
  static constexpr int64_t SIZE = 256, BYTES = 176, GROUP = 32;
  static constexpr bool HAS_MINIMA = true;
  static void unpack(const uint8_t* block, uint8_t* codes, float* scales, float* minima) {
    scales_and_minima(block, scales, minima);
    for (int i = 0; i < 4; ++i) nibbles(block + 48 + 32 * i, 32, codes + 64 * i);
    for (int j = 0; j < 8; ++j)
#pragma omp simd
      for (int i = 0; i < 32; ++i) codes[32 * j + i] |= (block[16 + i] >> j & 1) << 4;
  }
};

struct Q6K { // 128 bytes of lower halves, 64 of two upper bits, 16 scales of 8 bits, d
  static constexpr int64_t SIZE = 256, BYTES = 210, GROUP = 16;
  static constexpr bool HAS_MINIMA = false;
  static void unpack(const uint8_t* block, uint8_t* codes, float* scales, float*) {
    for (int half = 0; half < 2; ++half) {
      uint8_t* to = codes + 128 * half;
      nibbles(block + 64 * half, 64, to);
      for (int j = 0; j < 4; ++j)
#pragma omp simd
        for (int i = 0; i < 32; ++i) to[32 * j + i] |= (block[128 + 32 * half + i] >> 2 * j & 3) << 4;
    }
    const float d = half_at(block + 208);
    for (int j = 0; j < 16; ++j) scales[j] = d * float(static_cast<int8_t>(block[192 + j]));
  }
};

using Unpacked = std::tuple<at::Tensor, at::Tensor, std::optional<at::Tensor>>;

template <typename Kind>
Unpacked unpack(const at::Tensor& rows) {
  TORCH_CHECK(rows.dim() == 2 && rows.size(1) % Kind::BYTES == 0, "rows of whole blocks");
  const at::Tensor from = rows.contiguous();
  const int64_t count = rows.size(0), blocks = rows.size(1) / Kind::BYTES, groups = Kind::SIZE / Kind::GROUP;
  const at::Tensor codes = at::empty({count, blocks * Kind::SIZE}, rows.options());
  const at::Tensor scales = at::empty({count, blocks * groups}, rows.options().dtype(at::kFloat));
  const at::Tensor minima = Kind::HAS_MINIMA ? at::empty_like(scales) : at::Tensor();
  uint8_t* to = codes.mutable_data_ptr<uint8_t>();
  float* by = scales.mutable_data_ptr<float>();
  float* least = Kind::HAS_MINIMA ? minima.mutable_data_ptr<float>() : nullptr;
  at::parallel_for(0, count * blocks, GRAIN / Kind::SIZE, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      Kind::unpack(from.const_data_ptr<uint8_t>() + i * Kind::BYTES, to + i * Kind::SIZE, by + i * groups,
                   least ? least + i * groups : nullptr);
  });
  return {codes, scales, Kind::HAS_MINIMA ? std::optional(minima) : std::nullopt};
}

Unpacked gguf_unpack(const at::Tensor& rows, int64_t kind) {
  switch (kind) { // ggml_type
    case 2: return unpack<Q4<false>>(rows);
    case 3: return unpack<Q4<true>>(rows);
    case 6: return unpack<Q5<false>>(rows);
    case 7: return unpack<Q5<true>>(rows);
    case 8: return unpack<Q8>(rows);
    case 12: return unpack<Q4K>(rows);
    case 13: return unpack<Q5K>(rows);
    case 14: return unpack<Q6K>(rows);
    default: TORCH_CHECK(false, "no blocks of the type ", kind);
  }
}

} // namespace

TORCH_LIBRARY_FRAGMENT(parley, library) {
  library.def("gguf_unpack(Tensor rows, int kind) -> (Tensor, Tensor, Tensor?)");
  library.impl("gguf_unpack", c10::DispatchKey::CPU, gguf_unpack);
}
