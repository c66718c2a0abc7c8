// Linear layers whose weights stay in blocks of 4, 5, 6 or 8 bits, and rows of such weights for embeddings.
//
// weight = scale * (code - zero) + minimum, with a scale, and a minimum where the format has them, for each group of 32
// or 16 inputs. A row of inputs is rounded to 8 bits in blocks of 32. Sums within a group are whole numbers, hence
// exact; across groups they are in float32, always in the same order: no bit of a row depends on which other rows there
// are, nor on how many threads.
#include "../cpu/vectors.h"
#include "instructions.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace {

constexpr int64_t INPUTS = 32;      // of a block
constexpr int64_t FOURS = INPUTS / FOUR;
constexpr int64_t PANELS = 2;       // LANES outputs each, whose lines lie in turns
constexpr int64_t WIDEST = PANELS * LANES;
constexpr int64_t CHUNK = 24;       // blocks whose weights stay in the nearest cache for all rows
constexpr int64_t FETCHED = 4096;   // bytes of weights that are fetched before they are needed
constexpr int64_t ENOUGH = 32768;   // inputs that are worth a thread

struct Format {
  int64_t bits, group;
  bool minima;
  int64_t zero;

  int64_t groups() const { return INPUTS / group; }
  int64_t line_bytes() const { return bits * LINE; }            // of a block, of one panel
  int64_t scales() const { return groups() * (1 + minima) * LANES; } // of a block, of one panel
};

// Where a block's numbers are: codes [panels / PANELS, blocks, lines, PANELS, LANES, FOUR], the last panels being fewer
// where their number is odd; scales [panels / PANELS, blocks, groups, PANELS, scale and minimum, LANES]. The first four
// lines have the lower four bits of codes, those of fours 4 .. 7 in the upper halves of bytes; the next have the other
// bits: of 5 bits one line, a bit for each four; of 6 bits two, two bits for each.
struct Packed {
  const uint8_t* codes;
  const c10::Half* scales;
  int64_t outputs, blocks;
  Format format;

  int64_t panels() const { return (outputs + LANES - 1) / LANES; }
  int64_t width(int64_t panel) const { return std::min(PANELS, panels() - panel / PANELS * PANELS); }
  const uint8_t* codes_from(int64_t panel) const { return codes + panel * blocks * format.line_bytes(); }
  const c10::Half* scales_from(int64_t panel) const { return scales + panel * blocks * format.scales(); }
};

// Inputs [rows, size] in 8 bits, zeros behind each row's end; block by block, so that rows that are multiplied together
// lie together.
class Rounded {
  std::vector<int8_t> codes_;
  std::vector<float> scales_, sums_;
  std::vector<int32_t> starts_;
  int64_t groups_ = 1;

 public:
  int64_t rows = 0, blocks = 0;

  const int8_t* codes(int64_t block, int64_t row) const { return codes_.data() + (block * rows + row) * INPUTS; }
  const float* scales(int64_t block, int64_t row) const { return scales_.data() + block * rows + row; }
  // What a group's sum begins with, because of the codes' zero.
  const int32_t* starts(int64_t block, int64_t row) const { return starts_.data() + (block * rows + row) * groups_; }
  // What minima are multiplied with.
  const float* sums(int64_t block, int64_t row) const { return sums_.data() + (block * rows + row) * groups_; }

  // `picks`: which of the inputs each row is; null: all of them.
  template <typename T>
  void take(const T* inputs, int64_t count, int64_t size, const Format& format, int32_t zero,
            const int64_t* picks = nullptr) {
    rows = count, blocks = (size + INPUTS - 1) / INPUTS, groups_ = format.groups();
    const int64_t places = rows * blocks;
    codes_.resize(places * INPUTS), scales_.resize(places);
    starts_.resize(places * groups_), sums_.resize(places * groups_);
    at::parallel_for(0, rows, std::max<int64_t>(1, ENOUGH / size), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        for (int64_t block = 0; block < blocks; ++block)
          round(inputs + (picks ? picks[row] : row) * size + block * INPUTS, std::min(INPUTS, size - block * INPUTS), block * rows + row, zero);
    });
  }

 private:
  template <typename T>
  void round(const T* from, int64_t count, int64_t place, int32_t zero) {
    alignas(64) float numbers[INPUTS];
    for (int64_t i = 0; i < INPUTS; i += PAIR) {
      const auto [low, high] = load(from + i, count - i);
      low.store(numbers + i), high.store(numbers + i + WIDTH);
    }
    const float largest = largest_of(numbers);
    const float by = largest > 0 ? 127 / largest : 0;
    scales_[place] = largest / 127;
    for (int64_t group = 0; group < groups_; ++group) {
      const int64_t size = INPUTS / groups_, begin = group * size;
      int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = begin; i < begin + size; ++i) {
        const int32_t code = std::bit_cast<int32_t>(numbers[i] * by + NEAREST) - std::bit_cast<int32_t>(NEAREST);
        codes_[place * INPUTS + i] = static_cast<int8_t>(code);
        sum += code;
      }
      starts_[place * groups_ + group] = -zero * sum;
      sums_[place * groups_ + group] = scales_[place] * float(sum);
    }
  }

  static constexpr float NEAREST = 3 << 22; // added, it leaves the nearest whole number in the lowest bits

  // As whole numbers floats have the same order, and what is not finite comes last: so it shows in all outputs.
  static float largest_of(const float* numbers) {
    int32_t largest = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < INPUTS; ++i)
      largest = std::max(largest, std::bit_cast<int32_t>(numbers[i]) & std::numeric_limits<int32_t>::max());
    const float found = std::bit_cast<float>(largest);
    return std::isfinite(found) ? found : std::numeric_limits<float>::quiet_NaN();
  }
};

// The codes of the I-th four of a block; its lines are `stride` apart.
template <typename Path, int BITS, int I>
PARLEY_INLINE typename Path::Codes codes_of(const uint8_t* lines, int64_t stride) {
  if constexpr (BITS == 8) return Path::load(lines + I * stride);
  else {
    const auto low = Path::template shifted<I < 4 ? 0 : -4>(Path::load(lines + I % 4 * stride), 15);
    if constexpr (BITS == 4) return low;
    else if constexpr (BITS == 5) return Path::either(low, Path::template shifted<4 - I>(Path::load(lines + 4 * stride), 16));
    else return Path::either(low, Path::template shifted<4 - 2 * (I % 4)>(Path::load(lines + (4 + I / 4) * stride), 48));
  }
}

template <typename Path_, int BITS_, int GROUPS_, bool MINIMA_>
struct Kernel {
  using Path = Path_;
  static constexpr int BITS = BITS_, GROUPS = GROUPS_;
  static constexpr bool MINIMA = MINIMA_;
  static constexpr int32_t ZERO = BITS == 8 ? Path::ZERO : 0;

  // sums[row][output] += inputs[row] . weights[output] over some blocks, of COUNT rows and as many outputs as WIDE
  // panels have.
  template <int COUNT, int WIDE>
  static __attribute__((noinline)) void multiply(const Rounded& in, int64_t row, const uint8_t* codes, const c10::Half* scales, int64_t first,
                       int64_t last, float* sums) {
    typename Path::Sums total[COUNT][WIDE];
#pragma GCC unroll 4
    for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 4
      for (int p = 0; p < WIDE; ++p) total[r][p] = Path::read(sums + ((row + r) * PANELS + p) * LANES);
    codes += first * BITS * LINE * WIDE, scales += first * GROUPS * WIDE * (1 + MINIMA) * LANES;
    for (int64_t block = first; block < last; ++block) {
      for (int64_t i = 0; i < BITS * WIDE; ++i) __builtin_prefetch(codes + i * LINE + FETCHED);
#pragma GCC unroll 2
      for (int group = 0; group < GROUPS; ++group) {
        typename Path::Ints part[COUNT][WIDE];
        const int32_t* starts = in.starts(block, row) + group;
#pragma GCC unroll 4
        for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 4
          for (int p = 0; p < WIDE; ++p) part[r][p] = Path::all(starts[r * GROUPS]);
        const int8_t* inputs = in.codes(block, row);
        if (group == 0) fours<COUNT, WIDE, 0>(part, codes, inputs, std::make_integer_sequence<int, FOURS / GROUPS>());
        else fours<COUNT, WIDE, FOURS / 2>(part, codes, inputs, std::make_integer_sequence<int, FOURS / 2>());
        const float* by = in.scales(block, row);
        const float* added = in.sums(block, row) + group;
#pragma GCC unroll 4
        for (int p = 0; p < WIDE; ++p) {
          const c10::Half* at = scales + (group * WIDE + p) * (1 + MINIMA) * LANES;
          const auto scale = Path::read(at);
#pragma GCC unroll 4
          for (int r = 0; r < COUNT; ++r) total[r][p] = Path::add(total[r][p], part[r][p], scale, by[r]);
          if constexpr (MINIMA) {
            const auto minimum = Path::read(at + LANES);
#pragma GCC unroll 4
            for (int r = 0; r < COUNT; ++r) total[r][p] = Path::add(total[r][p], minimum, added[r * GROUPS]);
          }
        }
      }
      codes += BITS * LINE * WIDE, scales += GROUPS * WIDE * (1 + MINIMA) * LANES;
    }
#pragma GCC unroll 4
    for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 4
      for (int p = 0; p < WIDE; ++p) Path::write(total[r][p], sums + ((row + r) * PANELS + p) * LANES);
  }

 private:
  template <int COUNT, int WIDE, int FIRST, int... I>
  static PARLEY_INLINE void fours(typename Path::Ints (&part)[COUNT][WIDE], const uint8_t* codes, const int8_t* inputs,
                                  std::integer_sequence<int, I...>) {
    (four<COUNT, WIDE, FIRST + I>(part, codes, inputs), ...);
  }

  template <int COUNT, int WIDE, int I>
  static PARLEY_INLINE void four(typename Path::Ints (&part)[COUNT][WIDE], const uint8_t* codes, const int8_t* inputs) {
    typename Path::Codes weights[WIDE];
#pragma GCC unroll 4
    for (int p = 0; p < WIDE; ++p) weights[p] = codes_of<Path, BITS, I>(codes + p * LINE, WIDE * LINE);
#pragma GCC unroll 4
    for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 4
      for (int p = 0; p < WIDE; ++p)
        part[r][p] = Path::template dot<BITS>(part[r][p], weights[p], inputs + r * INPUTS + I * FOUR);
  }
};

// Some of a step's rows.
struct Rows {
  int64_t begin, end;

  int64_t count() const { return end - begin; }
};

// So many rows at a time, then as many as are left.
template <typename Kernel, int COUNT, int WIDE>
void all_rows(const Rounded& in, Rows rows, const uint8_t* codes, const c10::Half* scales, int64_t first, int64_t last,
              float* sums) {
  for (; rows.begin + COUNT <= rows.end; rows.begin += COUNT)
    Kernel::template multiply<COUNT, WIDE>(in, rows.begin, codes, scales, first, last, sums);
  if constexpr (COUNT > 1)
    if (rows.begin < rows.end) all_rows<Kernel, COUNT - 1, WIDE>(in, rows, codes, scales, first, last, sums);
}

// With the outputs of one panel, or of PANELS side by side.
template <typename Kernel, int WIDE>
void all_inputs(const Rounded& in, Rows rows, const uint8_t* codes, const c10::Half* scales, float* sums) {
  constexpr int ROWS = Kernel::Path::ROWS;
  const int64_t chunks = rows.count() <= ROWS ? 1 : (in.blocks + CHUNK - 1) / CHUNK;
  for (int64_t i = 0; i < chunks; ++i)
    all_rows<Kernel, ROWS, WIDE>(in, rows, codes, scales, in.blocks * i / chunks, in.blocks * (i + 1) / chunks, sums);
}

// A Kernel, as a value.
struct Multiply {
  using Run = void(const Rounded&, Rows, const uint8_t*, const c10::Half*, float*); // adds to the sums of its rows
  Run *one, *several; // panels
  int32_t zero;       // what it takes off by itself
};

struct Layer {
  Packed weights;
  const float* bias; // [outputs], or null
  float factor;      // of all products
};

// Two panels' outputs, from `begin` on. `places`: which row of `out` each row is; null: the same.
template <typename T>
void write(const float* sums, Rows rows, const Layer& layer, int64_t begin, T* out, const int64_t* places = nullptr) {
  const int64_t outputs = layer.weights.outputs, count = std::min(WIDEST, outputs - begin);
  const Floats factor(layer.factor);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    T* to = out + (places ? places[row] : row) * outputs + begin;
    for (int64_t i = 0; i < count; i += PAIR) {
      const auto [low, high] = load(layer.bias + begin + i, layer.bias ? count - i : 0);
      const auto one = Floats::loadu(sums + row * WIDEST + i) * factor + low;
      const auto other = Floats::loadu(sums + row * WIDEST + i + WIDTH) * factor + high;
      store(one, other, to + i, count - i);
    }
  }
}

// `sums` has room for all rows of a step.
template <typename T>
void panel_product(const Multiply& multiply, const Rounded& in, Rows rows, const Layer& layer, int64_t panel,
                   std::vector<float>& sums, T* out, const int64_t* places = nullptr) {
  const Packed& weights = layer.weights;
  sums.resize(in.rows * WIDEST);
  std::fill(sums.begin() + rows.begin * WIDEST, sums.begin() + rows.end * WIDEST, 0.f);
  auto* run = weights.width(panel) == PANELS ? multiply.several : multiply.one;
  run(in, rows, weights.codes_from(panel), weights.scales_from(panel), sums.data());
  write(sums.data(), rows, layer, panel * LANES, out, places);
}

template <typename In, typename Out>
void product(const Multiply& multiply, const In* inputs, int64_t rows, int64_t size, const Layer& layer, Out* out) {
  static thread_local Rounded rounded; // kept: to ask for memory and give it back costs as much as to fill it
  Rounded& in = rounded;
  const Packed& weights = layer.weights;
  in.take(inputs, rows, size, weights.format, static_cast<int32_t>(weights.format.zero) - multiply.zero);
  at::parallel_for(0, (weights.panels() + PANELS - 1) / PANELS, 1, [&](int64_t begin, int64_t end) {
    static thread_local std::vector<float> sums;
    for (int64_t panel = begin * PANELS; panel < std::min(end * PANELS, weights.panels()); panel += PANELS)
      panel_product(multiply, in, {0, rows}, layer, panel, sums, out);
  });
}

template <typename Kernel>
Multiply multiply_by() {
  return {all_inputs<Kernel, 1>, all_inputs<Kernel, PANELS>, Kernel::ZERO};
}

template <typename Path>
Multiply multiply_of(const Format& format) {
  const bool minima = format.minima;
  if (format.group == 16 && format.bits == 6 && !minima) return multiply_by<Kernel<Path, 6, 2, false>>();
  TORCH_CHECK(format.group == INPUTS, "no products with groups of ", format.group);
  switch (format.bits) {
    case 4: return minima ? multiply_by<Kernel<Path, 4, 1, true>>() : multiply_by<Kernel<Path, 4, 1, false>>();
    case 5: return minima ? multiply_by<Kernel<Path, 5, 1, true>>() : multiply_by<Kernel<Path, 5, 1, false>>();
    case 8: return minima ? multiply_by<Kernel<Path, 8, 1, true>>() : multiply_by<Kernel<Path, 8, 1, false>>();
    default: TORCH_CHECK(false, "no products with ", format.bits, " bits");
  }
}

// By the best instructions, or by those of this name.
Multiply multiply_of(const Format& format, const std::string& name) {
#ifdef PARLEY_AVX512_VNNI
  if (name.empty() || name == "avx512_vnni") return multiply_of<Avx512Vnni>(format);
#endif
#ifdef PARLEY_AVX2
  if (name.empty() || name == "avx2") return multiply_of<Avx2>(format);
#endif
  TORCH_CHECK(name.empty() || name == "portable", "no instructions ", name);
  return multiply_of<Portable>(format);
}

template <typename Run>
void with_numbers(at::ScalarType type, const Run& run) {
  switch (type) {
    case at::kFloat: return run(float());
    case at::kBFloat16: return run(at::BFloat16());
    case at::kHalf: return run(at::Half());
    default: TORCH_CHECK(false, "no products in ", type);
  }
}

Packed packed_of(const at::Tensor& codes, const at::Tensor& scales, int64_t outputs, int64_t size, const Format& format) {
  const Packed packed{codes.const_data_ptr<uint8_t>(), scales.const_data_ptr<at::Half>(), outputs,
                      (size + INPUTS - 1) / INPUTS, format};
  const int64_t blocks = packed.panels() * packed.blocks;
  TORCH_CHECK(codes.is_contiguous() && codes.numel() == blocks * format.line_bytes(), "codes of another layer");
  TORCH_CHECK(scales.is_contiguous() && scales.numel() == blocks * format.scales(), "scales of another layer");
  return packed;
}

at::Tensor quantized_linear(const at::Tensor& inputs, const at::Tensor& codes, const at::Tensor& scales,
                            const std::optional<at::Tensor>& bias, int64_t outputs, int64_t bits, int64_t group,
                            bool minima, int64_t zero, double factor, std::optional<at::ScalarType> dtype,
                            const std::string& instructions) {
  const at::Tensor rows = inputs.contiguous();
  auto shape = inputs.sizes().vec();
  const int64_t size = shape.back();
  const Format format{bits, group, minima, zero};
  const Layer layer{packed_of(codes, scales, outputs, size, format), bias ? bias->const_data_ptr<float>() : nullptr,
                    static_cast<float>(factor)};
  shape.back() = outputs;
  at::Tensor out = at::empty(shape, inputs.options().dtype(dtype.value_or(inputs.scalar_type())));
  if (!out.numel()) return out;
  const Multiply multiply = multiply_of(format, instructions);
  with_numbers(inputs.scalar_type(), [&](auto number) {
    using In = decltype(number);
    const In* from = rows.const_data_ptr<In>();
    if (out.scalar_type() == inputs.scalar_type())
      return product(multiply, from, rows.numel() / size, size, layer, out.mutable_data_ptr<In>());
    TORCH_CHECK(out.scalar_type() == at::kFloat, "products in other numbers than inputs are in float32");
    product(multiply, from, rows.numel() / size, size, layer, out.mutable_data_ptr<float>());
  });
  return out;
}

} // namespace

#include "block_experts.h"

namespace {

// One code or scale at a time: for a row of an embedding, and to write them.
struct Place {
  int64_t panel, width, lane;

  Place(const Packed& packed, int64_t output)
      : panel(output / LANES), width(packed.width(panel)), lane(output % LANES) {}

  int64_t line(const Packed& packed, int64_t block, int64_t line) const {
    const int64_t first = panel / PANELS * PANELS * packed.blocks * packed.format.line_bytes();
    return first + ((block * packed.format.bits + line) * width + panel % PANELS) * LINE + lane * FOUR;
  }
  int64_t scale(const Packed& packed, int64_t group) const { // the minimum is LANES behind it
    const int64_t numbers = (1 + packed.format.minima) * LANES;
    const int64_t first = panel / PANELS * PANELS * packed.blocks * packed.format.scales();
    return first + (group * width + panel % PANELS) * numbers + lane;
  }
};

void read_row(const Packed& packed, int64_t output, int64_t size, float factor, float* out) {
  const Place place(packed, output);
  const auto& [bits, group, minima, zero] = packed.format;
  for (int64_t block = 0; block < packed.blocks; ++block) {
    for (int64_t i = 0; i < INPUTS; ++i) {
      const int64_t four = i / FOUR, each = i % FOUR, input = block * INPUTS + i;
      if (input >= size) return;
      const auto byte = [&](int64_t line) -> int64_t { return packed.codes[place.line(packed, block, line) + each]; };
      int64_t code = bits == 8 ? byte(four) : (byte(four % 4) >> (four < 4 ? 0 : 4)) & 15;
      if (bits == 5) code |= (byte(4) >> four & 1) << 4;
      if (bits == 6) code |= (byte(4 + four / 4) >> 2 * (four % 4) & 3) << 4;
      const c10::Half* scale = packed.scales + place.scale(packed, input / group);
      const float minimum = minima ? float(scale[LANES]) : 0.f;
      out[input] = (float(*scale) * float(code - zero) + minimum) * factor;
    }
  }
}

at::Tensor quantized_rows(const at::Tensor& ids, const at::Tensor& codes, const at::Tensor& scales, int64_t outputs,
                          int64_t size, int64_t bits, int64_t group, bool minima, int64_t zero, double factor,
                          at::ScalarType dtype) {
  const Packed packed = packed_of(codes, scales, outputs, size, {bits, group, minima, zero});
  const at::Tensor flat = ids.contiguous();
  auto shape = ids.sizes().vec();
  shape.push_back(size);
  at::Tensor out = at::empty(shape, scales.options().dtype(dtype));
  const int64_t* at = flat.const_data_ptr<int64_t>();
  with_numbers(dtype, [&](auto number) {
    using T = decltype(number);
    T* to = out.mutable_data_ptr<T>();
    at::parallel_for(0, flat.numel(), std::max<int64_t>(1, ENOUGH / size), [&](int64_t begin, int64_t end) {
      std::vector<float> row(size);
      for (int64_t i = begin; i < end; ++i) {
        TORCH_CHECK_INDEX(at[i] >= 0 && at[i] < outputs, "there is no row ", at[i]);
        read_row(packed, at[i], size, static_cast<float>(factor), row.data());
        std::copy(row.begin(), row.end(), to + i * size);
      }
    });
  });
  return out;
}

// Codes [outputs, inputs] and scales [outputs, groups] of some outputs, the first of which is `first`, to their places.
void quantized_pack(const at::Tensor& codes, const at::Tensor& scales, const std::optional<at::Tensor>& minima,
                    const at::Tensor& to_codes, const at::Tensor& to_scales, int64_t first, int64_t outputs, int64_t bits,
                    int64_t group) {
  const int64_t size = codes.size(1), count = codes.size(0), groups = scales.size(1);
  const Packed packed = packed_of(to_codes, to_scales, outputs, size, {bits, group, minima.has_value(), 0});
  TORCH_CHECK(first >= 0 && first + count <= outputs, "outputs that the layer does not have");
  TORCH_CHECK(scales.size(0) == count && groups == (size + group - 1) / group, "a scale for each group");
  const at::Tensor from = codes.contiguous(), by = scales.contiguous();
  const at::Tensor low = minima ? minima->contiguous() : at::Tensor();
  TORCH_CHECK(!minima || low.numel() == by.numel(), "a minimum for each group");
  const uint8_t* numbers = from.const_data_ptr<uint8_t>();
  uint8_t* bytes = to_codes.mutable_data_ptr<uint8_t>();
  at::Half* halves = to_scales.mutable_data_ptr<at::Half>();
  // whole panels a thread: 5 and 6 bits of different fours share bytes, but no two outputs do
  at::parallel_for(0, count, LANES, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const Place place(packed, first + row);
      for (int64_t i = 0; i < size; i += FOUR) {
        const int64_t block = i / INPUTS, four = i % INPUTS / FOUR;
        uint32_t word = 0;
        std::memcpy(&word, numbers + row * size + i, std::min(FOUR, size - i));
        const auto add = [&](int64_t line, uint32_t more) {
          uint8_t* to = bytes + place.line(packed, block, line);
          uint32_t old;
          std::memcpy(&old, to, FOUR);
          old |= more;
          std::memcpy(to, &old, FOUR);
        };
        if (bits == 8) {
          add(four, word);
          continue;
        }
        add(four % 4, (word & 0x0f0f0f0f) << (four < 4 ? 0 : 4));
        if (bits == 5) add(4, (word >> 4 & 0x01010101) << four);
        if (bits == 6) add(4 + four / 4, (word >> 4 & 0x03030303) << 2 * (four % 4));
      }
      for (int64_t i = 0; i < groups; ++i) {
        at::Half* to = halves + place.scale(packed, i);
        to[0] = by.const_data_ptr<at::Half>()[row * groups + i];
        if (minima) to[LANES] = low.const_data_ptr<at::Half>()[row * groups + i];
      }
    }
  });
}

std::vector<std::string> instructions() {
  return {
#ifdef PARLEY_AVX512_VNNI
      "avx512_vnni",
#endif
#ifdef PARLEY_AVX2
      "avx2",
#endif
      "portable"};
}

} // namespace

TORCH_LIBRARY_FRAGMENT(parley, library) {
  library.def("quantized_linear(Tensor inputs, Tensor codes, Tensor scales, Tensor? bias, int outputs, int bits, "
              "int group, bool minima, int zero, float factor, ScalarType? dtype=None, str instructions=\"\") -> Tensor");
  library.impl("quantized_linear", c10::DispatchKey::CPU, quantized_linear);
  library.def("quantized_experts(Tensor inputs, Tensor experts, Tensor codes, Tensor scales, Tensor? bias, int outputs, "
              "int bits, int group, bool minima, int zero, float factor, ScalarType? dtype=None, "
              "str instructions=\"\") -> Tensor");
  library.impl("quantized_experts", c10::DispatchKey::CPU, quantized_experts);
  library.def("combine_experts(Tensor outputs, Tensor weights, ScalarType dtype) -> Tensor");
  library.impl("combine_experts", c10::DispatchKey::CPU, combine_experts);
  library.def("quantized_rows(Tensor ids, Tensor codes, Tensor scales, int outputs, int size, int bits, int group, "
              "bool minima, int zero, float factor, ScalarType dtype) -> Tensor");
  library.impl("quantized_rows", c10::DispatchKey::CPU, quantized_rows);
  library.def("quantized_pack(Tensor codes, Tensor scales, Tensor? minima, Tensor(a!) to_codes, Tensor(b!) to_scales, "
              "int first, int outputs, int bits, int group) -> ()");
  library.impl("quantized_pack", c10::DispatchKey::CPU, quantized_pack);
  library.def("quantized_instructions() -> str[]", instructions);
}
