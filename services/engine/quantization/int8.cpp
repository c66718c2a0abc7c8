// Linear layers with weights of 8 bits: half the bytes of bfloat16 to read, and twice the products an instruction.
//
// Weights are in blocks of inputs, each with a scale of its own; a row of inputs is rounded to 8 bits too, in the same
// blocks. Sums within a block are whole numbers, hence exact; across blocks they are in float32, always in the same
// order. So no bit of a row depends on which other rows there are, nor on how many threads.
#include "../cpu/vectors.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#ifdef __AVX512VNNI__ // elsewhere torch's own product is used

namespace {

constexpr int64_t BLOCK = 32; // inputs with one scale
constexpr int64_t FOUR = 4;   // inputs that one instruction adds up
constexpr int64_t PANEL = 16; // outputs of one register
constexpr int64_t LINE = PANEL * FOUR;
constexpr int ROWS = 4, PANELS = 3;  // whose sums fit into registers
constexpr int64_t CHUNK = 24;        // blocks whose weights, those of PANELS panels, stay in the nearest cache for all rows
constexpr int64_t AHEAD = 4096;      // bytes of weights that are fetched before they are needed
constexpr int64_t GRAIN = 32768;     // inputs that are worth a thread
constexpr int32_t ZERO = 128;        // what stands for 0 among the weights, which are unsigned
static_assert(BLOCK == PAIR);

// PANEL numbers in registers
using Ints = __m512i;
using Sums = __m512;

inline Ints all(int32_t value) { return _mm512_set1_epi32(value); }
inline Sums read(const float* from) { return _mm512_loadu_ps(from); }
inline Sums read(const at::BFloat16* from) { // the upper halves of floats
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
inline void write(Sums sums, float* to) { _mm512_storeu_ps(to, sums); }

inline Ints dot(Ints sum, const uint8_t* weights, const int8_t* four) {
  int32_t inputs;
  std::memcpy(&inputs, four, FOUR);
  return _mm512_dpbusd_epi32(sum, _mm512_loadu_si512(weights), all(inputs));
}

inline Sums add(Sums sum, Ints part, Sums scales, float scale) {
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(part), _mm512_mul_ps(scales, _mm512_set1_ps(scale)), sum);
}

// Inputs [rows, size] in 8 bits, zeros behind each row's end; block by block, so that rows that are multiplied together
// lie together.
class Rounded {
  std::vector<int8_t> codes_;
  std::vector<float> scales_;
  std::vector<int32_t> starts_;

 public:
  int64_t rows = 0, blocks = 0;

  const int8_t* codes(int64_t block, int64_t row) const { return codes_.data() + (block * rows + row) * BLOCK; }
  const float* scales(int64_t block, int64_t row) const { return scales_.data() + block * rows + row; }
  // What a block's sum begins with, because weights have ZERO added.
  const int32_t* starts(int64_t block, int64_t row) const { return starts_.data() + block * rows + row; }

  template <typename T>
  void take(const T* inputs, int64_t count, int64_t size) {
    rows = count, blocks = (size + BLOCK - 1) / BLOCK;
    codes_.resize(blocks * rows * BLOCK), scales_.resize(blocks * rows), starts_.resize(blocks * rows);
    at::parallel_for(0, rows, std::max<int64_t>(1, GRAIN / size), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        for (int64_t block = 0; block < blocks; ++block)
          round(inputs + row * size + block * BLOCK, std::min(BLOCK, size - block * BLOCK), block * rows + row);
    });
  }

 private:
  template <typename T>
  void round(const T* from, int64_t count, int64_t place) {
    const auto [low, high] = load(from, count);
    const float largest = largest_of(low, high);
    const Sums by = _mm512_set1_ps(largest > 0 ? 127 / largest : 0);
    const Ints first = _mm512_cvtps_epi32(_mm512_mul_ps(low, by)), second = _mm512_cvtps_epi32(_mm512_mul_ps(high, by));
    int8_t* to = codes_.data() + place * BLOCK;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(first));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + BLOCK / 2), _mm512_cvtepi32_epi8(second));
    scales_[place] = largest / 127;
    starts_[place] = _mm512_reduce_add_epi32(_mm512_mullo_epi32(_mm512_add_epi32(first, second), all(-ZERO)));
  }

  // As whole numbers floats have the same order, and what is not finite comes last: so it shows in all outputs.
  static float largest_of(Sums low, Sums high) {
    const Ints magnitude = all(std::numeric_limits<int32_t>::max());
    const Ints one = _mm512_and_epi32(_mm512_castps_si512(low), magnitude);
    const Ints other = _mm512_and_epi32(_mm512_castps_si512(high), magnitude);
    const float largest = std::bit_cast<float>(_mm512_reduce_max_epi32(_mm512_max_epi32(one, other)));
    return std::isfinite(largest) ? largest : std::numeric_limits<float>::quiet_NaN();
  }
};

// Some of them side by side.
struct Panels {
  const uint8_t* codes;       // [inputs / FOUR, panels, PANEL, FOUR]
  const at::BFloat16* scales; // [inputs / BLOCK, panels, PANEL]
};

struct Layer {
  Panels weights;    // PANELS panels after another, or as many as are left
  const float* bias; // [outputs], or null
  int64_t outputs, blocks;

  int64_t panels() const { return (outputs + PANEL - 1) / PANEL; }
  int64_t span() const { return blocks * PANEL; } // scales of a panel
  Panels from(int64_t panel) const {
    return {weights.codes + panel * span() * BLOCK, weights.scales + panel * span()};
  }
};

// sums[row][output] += inputs[row] . weights[output] over some blocks, of COUNT rows and as many outputs as WIDE panels
// have.
template <int COUNT, int WIDE>
inline void multiply(const Rounded& in, int64_t row, const Panels& panels, int64_t first, int64_t last, float* sums) {
  Sums total[COUNT][WIDE];
#pragma GCC unroll 4
  for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 4
    for (int p = 0; p < WIDE; ++p) total[r][p] = read(sums + ((row + r) * PANELS + p) * PANEL);
  for (int64_t block = first; block < last; ++block) {
    const int32_t* starts = in.starts(block, row);
    const float* scales = in.scales(block, row);
    const int8_t* codes = in.codes(block, row);
    Ints part[COUNT][WIDE];
#pragma GCC unroll 4
    for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 4
      for (int p = 0; p < WIDE; ++p) part[r][p] = all(starts[r]);
    const uint8_t* weights = panels.codes + block * BLOCK * WIDE * PANEL;
#pragma GCC unroll 8
    for (int64_t i = 0; i < BLOCK / FOUR; ++i) {
      for (int p = 0; p < WIDE; ++p) __builtin_prefetch(weights + (i * WIDE + p) * LINE + AHEAD);
#pragma GCC unroll 4
      for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 4
        for (int p = 0; p < WIDE; ++p)
          part[r][p] = dot(part[r][p], weights + (i * WIDE + p) * LINE, codes + r * BLOCK + i * FOUR);
    }
#pragma GCC unroll 4
    for (int p = 0; p < WIDE; ++p) {
      const Sums by = read(panels.scales + (block * WIDE + p) * PANEL);
#pragma GCC unroll 4
      for (int r = 0; r < COUNT; ++r) total[r][p] = add(total[r][p], part[r][p], by, scales[r]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 4
    for (int p = 0; p < WIDE; ++p) write(total[r][p], sums + ((row + r) * PANELS + p) * PANEL);
}

// So many rows at a time, then as many as are left.
template <int COUNT, int WIDE>
void all_rows(const Rounded& in, const Panels& panels, int64_t first, int64_t last, float* sums, int64_t row = 0) {
  for (; row + COUNT <= in.rows; row += COUNT) multiply<COUNT, WIDE>(in, row, panels, first, last, sums);
  if constexpr (COUNT > 1)
    if (row < in.rows) all_rows<COUNT - 1, WIDE>(in, panels, first, last, sums, row);
}

template <int WIDE>
void all_inputs(const Rounded& in, const Panels& panels, float* sums) {
  const int64_t chunks = in.rows <= ROWS ? 1 : (in.blocks + CHUNK - 1) / CHUNK;
  for (int64_t i = 0; i < chunks; ++i)
    all_rows<ROWS, WIDE>(in, panels, in.blocks * i / chunks, in.blocks * (i + 1) / chunks, sums);
}

// PANELS panels from this one on, or as many as there are.
template <typename T>
void some_outputs(const Rounded& in, const Layer& layer, int64_t panel, std::vector<float>& sums, T* out) {
  std::fill(sums.begin(), sums.end(), 0.f);
  const Panels panels = layer.from(panel);
  const int64_t left = layer.panels() - panel;
  if (left >= PANELS) all_inputs<PANELS>(in, panels, sums.data());
  else if (left == 2) all_inputs<2>(in, panels, sums.data());
  else all_inputs<1>(in, panels, sums.data());
  const int64_t begin = panel * PANEL, count = std::min(PANELS * PANEL, layer.outputs - begin);
  for (int64_t row = 0; row < in.rows; ++row) {
    const float* sum = sums.data() + row * PANELS * PANEL;
    for (int64_t i = 0; i < count; i += PAIR) {
      const auto [low, high] = load(layer.bias + begin + i, layer.bias ? count - i : 0);
      const auto one = Floats::loadu(sum + i) + low, other = Floats::loadu(sum + i + WIDTH) + high;
      store(one, other, out + row * layer.outputs + begin + i, count - i);
    }
  }
}

template <typename T>
void run(const at::Tensor& inputs, const Layer& layer, at::Tensor& out) {
  const int64_t size = inputs.size(-1), rows = inputs.numel() / size;
  static thread_local Rounded rounded; // kept: to ask for memory and give it back costs as much as to fill it
  Rounded& in = rounded;
  in.take(inputs.const_data_ptr<T>(), rows, size);
  T* to = out.mutable_data_ptr<T>();
  const int64_t groups = (layer.panels() + PANELS - 1) / PANELS;
  at::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
    static thread_local std::vector<float> sums;
    sums.resize(rows * PANELS * PANEL + PAIR); // reads go on behind the end
    for (int64_t group = begin; group < end; ++group) some_outputs(in, layer, group * PANELS, sums, to);
  });
}

at::Tensor int8_linear(const at::Tensor& inputs, const at::Tensor& weight, const at::Tensor& scales,
                       const std::optional<at::Tensor>& bias, int64_t outputs) {
  const at::Tensor rows = inputs.contiguous();
  auto shape = inputs.sizes().vec();
  const Layer layer{{weight.const_data_ptr<uint8_t>(), scales.const_data_ptr<at::BFloat16>()},
                    bias ? bias->const_data_ptr<float>() : nullptr, outputs, (shape.back() + BLOCK - 1) / BLOCK};
  const int64_t size = layer.panels() * layer.span();
  TORCH_CHECK(weight.is_contiguous() && weight.numel() == size * BLOCK, "weights of another layer");
  TORCH_CHECK(scales.is_contiguous() && scales.numel() == size, "scales of another layer");
  shape.back() = outputs;
  at::Tensor out = at::empty(shape, inputs.options());
  if (!out.numel()) return out;
  switch (inputs.scalar_type()) {
    case at::kFloat: run<float>(rows, layer, out); break;
    case at::kBFloat16: run<at::BFloat16>(rows, layer, out); break;
    case at::kHalf: run<at::Half>(rows, layer, out); break;
    default: TORCH_CHECK(false, "no products in ", inputs.scalar_type());
  }
  return out;
}

} // namespace

TORCH_LIBRARY_FRAGMENT(parley, library) {
  library.def("int8_linear(Tensor inputs, Tensor weight, Tensor scales, Tensor? bias, int outputs) -> Tensor");
  library.impl("int8_linear", c10::DispatchKey::CPU, int8_linear);
}

#endif
