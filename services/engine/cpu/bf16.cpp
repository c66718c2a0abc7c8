// Linear layers with weights of bfloat16, kept in 12 bits each without loss: at few rows a product takes as long as its
// weights take to be read.
//
// Of a trained layer's weights nearly all have one of 15 upper bytes (sign and most of the exponent). Four bits say
// which, the lower byte is kept as it is, and the few others are exceptions in a list of their own. The idea of coding
// exponents is that of DFloat11 (arXiv 2504.11651); this code has one length, so that a register of codes takes a
// handful of instructions. A layer that has too many exceptions is kept as it is, in the same order.
//
// Each output's products are added up in one order, whatever rows and threads there are: no bit of a row depends on its
// company.
#include "vectors.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

#if defined(CPU_CAPABILITY_AVX512) && defined(__AVX512BF16__) // elsewhere oneDNN's product is used

namespace {

constexpr int64_t PANEL = 16;  // outputs of one register
constexpr int64_t PANELS = 3;  // whose sums fit into registers, for ROWS rows
constexpr int ROWS = 8;
constexpr int64_t GROUP = PANEL * PANELS;      // outputs
constexpr int64_t SPAN = 64;                   // inputs of a tile
constexpr int64_t TILE = GROUP * SPAN;         // weights, as [SPAN / 2, PANELS, PANEL, 2]
constexpr int64_t UNIT = 128;                  // weights that are decoded together
constexpr int64_t UNIT_BYTES = UNIT * 3 / 2;   // 64 of codes, two a byte, then 128 of lower bytes
constexpr int64_t TILE_BYTES = TILE / UNIT * UNIT_BYTES;
constexpr int64_t CHUNK = 3;                   // tiles that are decoded at once for many rows; they fit into the nearest cache
constexpr int64_t CACHE_LINE = 64;
constexpr int64_t CODES = 16;                  // the first one says that the upper byte is 0
constexpr double MOST_EXCEPTIONS = 0.004;      // of the weights
static_assert(TILE <= 1 << 16);

using Bits = uint16_t; // of a bfloat16
using Block = __m512i;
using Sums = __m512;

// Where a weight of a unit goes: interleaving bytes works within lanes of 16 bytes, whose halves go to two registers.
struct Place {
  int64_t reg, byte;
};
constexpr Place place_of(int64_t weight) { // within its unit
  const int64_t reg = weight / PAIR, word = weight % PAIR;
  return {reg / 2, word / 8 * 16 + reg % 2 * 8 + word % 8};
}

inline void decode(const uint8_t* from, Block table, Bits* to) {
  const Block codes = _mm512_loadu_si512(from), nibble = _mm512_set1_epi8(15);
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const Block low = _mm512_loadu_si512(from + 64 * (half + 1));
    const Block code = _mm512_and_si512(half ? _mm512_srli_epi16(codes, 4) : codes, nibble);
    const Block high = _mm512_shuffle_epi8(table, code);
    _mm512_store_si512(to + half * 2 * PAIR, _mm512_unpacklo_epi8(low, high));
    _mm512_store_si512(to + half * 2 * PAIR + PAIR, _mm512_unpackhi_epi8(low, high));
  }
}

// An exception: the upper half says where in its tile it belongs.
inline int32_t exception(int64_t place, Bits bits) { return static_cast<int32_t>(static_cast<uint32_t>(place) << 16 | bits); }

struct Weights {
  const uint8_t* codes;     // [groups, tiles, TILE_BYTES]; without a table [groups, tiles, TILE, 2]
  const uint8_t* table;     // [CODES]; null: they are kept as they are
  const int32_t* starts;    // [groups * tiles + 1], of each tile's exceptions
  const int32_t* exceptions;
  int64_t tiles;

  int64_t tile_bytes() const { return table ? TILE_BYTES : 2 * TILE; }

  // Tile by tile into `room`, or where they lie.
  const Bits* read(int64_t tile, int64_t count, Bits* room) const {
    if (!table) return reinterpret_cast<const Bits*>(codes) + tile * TILE;
    const Block upper = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
    for (int64_t i = 0; i < count; ++i) {
      Bits* to = room + i * TILE;
      const uint8_t* from = codes + (tile + i) * TILE_BYTES;
      for (int64_t unit = 0; unit < TILE / UNIT; ++unit) decode(from + unit * UNIT_BYTES, upper, to + unit * UNIT);
      for (int32_t at = starts[tile + i]; at < starts[tile + i + 1]; ++at)
        to[static_cast<uint32_t>(exceptions[at]) >> 16] = static_cast<Bits>(exceptions[at]);
    }
    return room;
  }
};

// Fetches the tiles that come next while the present ones are multiplied: decoding alone would wait for each of them.
struct Fetch {
  const uint8_t *at, *end;
  int64_t lines; // a step

  void step() {
    for (int64_t i = 0; i < lines && at < end; ++i, at += CACHE_LINE) __builtin_prefetch(at, 0, 2);
  }
};

// sums[row][output] += inputs[row] . weights[output], of COUNT rows and a group's outputs
template <int COUNT>
inline void multiply(const Bits* inputs, int64_t stride, const Bits* weights, int64_t pairs, float* sums, Fetch& fetch) {
  Sums total[COUNT][PANELS];
#pragma GCC unroll 8
  for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 4
    for (int p = 0; p < PANELS; ++p) total[r][p] = _mm512_loadu_ps(sums + r * GROUP + p * PANEL);
  for (int64_t i = 0; i < pairs; ++i) {
    fetch.step();
    if (COUNT == ROWS && i % 2 == 0) // the next rows, a line of each in turn
      __builtin_prefetch(inputs + (COUNT + i % PANEL / 2) * stride + i / PANEL * PAIR);
    Block weight[PANELS];
#pragma GCC unroll 4
    for (int p = 0; p < PANELS; ++p) weight[p] = _mm512_loadu_si512(weights + (i * PANELS + p) * PAIR);
#pragma GCC unroll 8
    for (int r = 0; r < COUNT; ++r) {
      int32_t two;
      std::memcpy(&two, inputs + r * stride + 2 * i, sizeof two);
      const Block input = _mm512_set1_epi32(two);
#pragma GCC unroll 4
      for (int p = 0; p < PANELS; ++p) total[r][p] = _mm512_dpbf16_ps(total[r][p], (__m512bh)input, (__m512bh)weight[p]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 4
    for (int p = 0; p < PANELS; ++p) _mm512_storeu_ps(sums + r * GROUP + p * PANEL, total[r][p]);
}

// So many rows at a time, then as many as are left.
template <int COUNT>
void all_rows(const Bits* inputs, int64_t rows, int64_t stride, const Bits* weights, int64_t pairs, float* sums,
              Fetch& fetch, int64_t row = 0) {
  for (; row + COUNT <= rows; row += COUNT)
    multiply<COUNT>(inputs + row * stride, stride, weights, pairs, sums + row * GROUP, fetch);
  if constexpr (COUNT > 1)
    if (row < rows) all_rows<COUNT - 1>(inputs, rows, stride, weights, pairs, sums, fetch, row);
}

struct Inputs {
  const Bits* numbers; // [rows, stride], zeros behind the last of them
  int64_t rows, stride;
};

template <typename T>
void some_outputs(const Inputs& in, const Weights& weights, int64_t group, const float* bias, int64_t outputs,
                  std::vector<float>& sums, T* out) {
  alignas(64) Bits room[CHUNK * TILE];
  std::fill(sums.begin(), sums.end(), 0.f);
  const int64_t chunk = in.rows <= ROWS ? 1 : CHUNK;
  for (int64_t tile = 0; tile < weights.tiles; tile += chunk) {
    const int64_t count = std::min(chunk, weights.tiles - tile);
    const int64_t place = group * weights.tiles + tile, steps = (in.rows + ROWS - 1) / ROWS * SPAN / 2;
    const Bits* decoded = weights.read(place, count, room);
    const int64_t bytes = weights.tile_bytes();
    const uint8_t* next = weights.codes + (place + count) * bytes;
    Fetch fetch{next, next + count * bytes, (bytes / CACHE_LINE + steps - 1) / steps};
    all_rows<ROWS>(in.numbers + tile * SPAN, in.rows, in.stride, decoded, count * SPAN / 2, sums.data(), fetch);
  }
  const int64_t begin = group * GROUP, count = std::min(GROUP, outputs - begin);
  for (int64_t row = 0; row < in.rows; ++row)
    for (int64_t i = 0; i < count; i += PAIR) {
      const float* sum = sums.data() + row * GROUP + i;
      const auto [low, high] = load(bias + begin + i, bias ? count - i : 0);
      store(Floats::loadu(sum) + low, Floats::loadu(sum + WIDTH) + high, out + row * outputs + begin + i, count - i);
    }
}

// As bfloat16 in rows of whole tiles: as they are where they lie so already.
template <typename T>
Inputs read_inputs(const at::Tensor& inputs, int64_t tiles) {
  static thread_local std::vector<Bits> copies; // kept: to ask for memory and give it back costs as much as to fill it
  const int64_t size = inputs.size(-1), rows = inputs.numel() / size, stride = tiles * SPAN;
  const T* from = inputs.const_data_ptr<T>();
  if constexpr (std::is_same_v<T, at::BFloat16>)
    if (size == stride) return {reinterpret_cast<const Bits*>(from), rows, stride};
  copies.resize(rows * stride);
  for (int64_t row = 0; row < rows; ++row) {
    auto* to = reinterpret_cast<at::BFloat16*>(copies.data() + row * stride);
    for (int64_t i = 0; i < stride; i += PAIR) {
      const auto [low, high] = load(from + row * size + i, size - i);
      store(low, high, to + i, PAIR);
    }
  }
  return {copies.data(), rows, stride};
}

template <typename T>
void run(const at::Tensor& inputs, const Weights& weights, const float* bias, at::Tensor& out) {
  const Inputs in = read_inputs<T>(inputs, weights.tiles);
  const int64_t outputs = out.size(-1);
  T* to = out.mutable_data_ptr<T>();
  at::parallel_for(0, (outputs + GROUP - 1) / GROUP, 1, [&](int64_t begin, int64_t end) {
    static thread_local std::vector<float> sums;
    sums.resize(in.rows * GROUP + PAIR); // reads go on behind the end
    for (int64_t group = begin; group < end; ++group) some_outputs(in, weights, group, bias, outputs, sums, to);
  });
}

int64_t tiles_of(int64_t inputs) { return (inputs + SPAN - 1) / SPAN; }
int64_t groups_of(int64_t outputs) { return (outputs + GROUP - 1) / GROUP; }

Weights weights_of(const at::Tensor& codes, const at::Tensor& table, const at::Tensor& starts,
                   const at::Tensor& exceptions, int64_t inputs, int64_t outputs) {
  const int64_t tiles = tiles_of(inputs), all = tiles * groups_of(outputs);
  const bool coded = table.numel();
  TORCH_CHECK(codes.is_contiguous() && codes.numel() == all * (coded ? TILE_BYTES : 2 * TILE), "weights of another layer");
  TORCH_CHECK(!coded || (table.numel() == CODES && starts.numel() == all + 1), "codes of another layer");
  return {codes.const_data_ptr<uint8_t>(), coded ? table.const_data_ptr<uint8_t>() : nullptr,
          starts.const_data_ptr<int32_t>(), exceptions.const_data_ptr<int32_t>(), tiles};
}

// Products are those of bfloat16, also where inputs are float32; sums are float32, and rounded to what the inputs are.
at::Tensor bf16_linear(const at::Tensor& inputs, const at::Tensor& codes, const at::Tensor& table,
                       const at::Tensor& starts, const at::Tensor& exceptions, const std::optional<at::Tensor>& bias,
                       int64_t outputs) {
  const at::Tensor rows = inputs.contiguous();
  auto shape = inputs.sizes().vec();
  const Weights weights = weights_of(codes, table, starts, exceptions, shape.back(), outputs);
  shape.back() = outputs;
  at::Tensor out = at::empty(shape, inputs.options());
  if (!out.numel()) return out;
  const float* added = bias ? bias->const_data_ptr<float>() : nullptr;
  switch (inputs.scalar_type()) {
    case at::kFloat: run<float>(rows, weights, added, out); break;
    case at::kBFloat16: run<at::BFloat16>(rows, weights, added, out); break;
    default: TORCH_CHECK(false, "no products in ", inputs.scalar_type());
  }
  return out;
}

// --- how weights get there ---

// The upper bytes of the most weights, behind the 0.
std::array<uint8_t, CODES> common_bytes(const at::Tensor& weight) {
  std::array<int64_t, 256> counts{};
  const Bits* bits = reinterpret_cast<const Bits*>(weight.const_data_ptr<at::BFloat16>());
  for (int64_t i = 0; i < weight.numel(); ++i) ++counts[bits[i] >> 8];
  std::array<uint8_t, 256> bytes;
  std::iota(bytes.begin(), bytes.end(), 0);
  std::stable_sort(bytes.begin() + 1, bytes.end(), [&](uint8_t one, uint8_t other) { return counts[one] > counts[other]; });
  std::array<uint8_t, CODES> table;
  std::copy_n(bytes.begin(), CODES, table.begin());
  return table;
}

// The weights of a tile in their order, zeros outside of the layer.
void collect(const at::Tensor& weight, int64_t group, int64_t tile, Bits* to) {
  const int64_t outputs = weight.size(0), inputs = weight.size(1);
  const Bits* from = reinterpret_cast<const Bits*>(weight.const_data_ptr<at::BFloat16>());
  std::fill_n(to, TILE, 0);
  for (int64_t o = 0; o < std::min(GROUP, outputs - group * GROUP); ++o)
    for (int64_t i = 0; i < std::min(SPAN, inputs - tile * SPAN); ++i)
      to[i / 2 * GROUP * 2 + o * 2 + i % 2] = from[(group * GROUP + o) * inputs + tile * SPAN + i];
}

// `codes` of the upper bytes, 0 for those that have none.
void encode(const Bits* from, const std::array<uint8_t, 256>& codes, uint8_t* to, std::vector<int32_t>& exceptions) {
  std::fill_n(to, TILE_BYTES, 0);
  for (int64_t i = 0; i < TILE; ++i) {
    const uint8_t upper = from[i] >> 8, code = codes[upper];
    if (!code && upper) {
      exceptions.push_back(exception(i, from[i]));
      continue;
    }
    const auto [reg, byte] = place_of(i % UNIT);
    uint8_t* unit = to + i / UNIT * UNIT_BYTES;
    unit[byte] |= code << 4 * reg;
    unit[64 * (reg + 1) + byte] = static_cast<uint8_t>(from[i]);
  }
}

template <typename Each>
void each_tile(const at::Tensor& weight, const Each& each) {
  const int64_t tiles = tiles_of(weight.size(1));
  at::parallel_for(0, tiles * groups_of(weight.size(0)), 1, [&](int64_t begin, int64_t end) {
    Bits bits[TILE];
    for (int64_t i = begin; i < end; ++i) {
      collect(weight, i / tiles, i % tiles, bits);
      each(i, bits);
    }
  });
}

using Packed = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

at::Tensor bytes_of(int64_t count) { return at::empty({count}, at::kByte); }
at::Tensor ints_of(const std::vector<int32_t>& numbers) {
  at::Tensor out = at::empty({static_cast<int64_t>(numbers.size())}, at::kInt);
  std::copy(numbers.begin(), numbers.end(), out.mutable_data_ptr<int32_t>());
  return out;
}

// [outputs, inputs] -> codes, table, starts and exceptions.
Packed bf16_pack(const at::Tensor& given) {
  const at::Tensor weight = given.contiguous();
  const int64_t all = tiles_of(weight.size(1)) * groups_of(weight.size(0));
  const auto table = common_bytes(weight);
  std::array<uint8_t, 256> codes{};
  for (int64_t code = 1; code < CODES; ++code) codes[table[code]] = code;
  at::Tensor coded = bytes_of(all * TILE_BYTES);
  uint8_t* to = coded.mutable_data_ptr<uint8_t>();
  std::vector<std::vector<int32_t>> found(all);
  each_tile(weight, [&](int64_t i, const Bits* bits) { encode(bits, codes, to + i * TILE_BYTES, found[i]); });
  std::vector<int32_t> starts{0}, exceptions;
  for (const auto& part : found) {
    exceptions.insert(exceptions.end(), part.begin(), part.end());
    starts.push_back(exceptions.size());
  }
  if (exceptions.size() <= MOST_EXCEPTIONS * weight.numel()) {
    at::Tensor bytes = bytes_of(CODES);
    std::copy(table.begin(), table.end(), bytes.mutable_data_ptr<uint8_t>());
    return {coded, bytes, ints_of(starts), ints_of(exceptions)};
  }
  at::Tensor plain = bytes_of(all * TILE * 2);
  Bits* room = reinterpret_cast<Bits*>(plain.mutable_data_ptr<uint8_t>());
  each_tile(weight, [&](int64_t i, const Bits* bits) { std::copy_n(bits, TILE, room + i * TILE); });
  return {plain, bytes_of(0), ints_of({}), ints_of({})};
}

// The other way round.
at::Tensor bf16_unpack(const at::Tensor& codes, const at::Tensor& table, const at::Tensor& starts,
                       const at::Tensor& exceptions, int64_t inputs, int64_t outputs) {
  const Weights weights = weights_of(codes, table, starts, exceptions, inputs, outputs);
  at::Tensor out = at::empty({outputs, inputs}, at::kBFloat16);
  Bits* to = reinterpret_cast<Bits*>(out.mutable_data_ptr<at::BFloat16>());
  at::parallel_for(0, groups_of(outputs), 1, [&](int64_t begin, int64_t end) {
    alignas(64) Bits room[TILE];
    for (int64_t i = begin * weights.tiles; i < end * weights.tiles; ++i) {
      const Bits* bits = weights.read(i, 1, room);
      const int64_t group = i / weights.tiles, tile = i % weights.tiles;
      for (int64_t o = 0; o < std::min(GROUP, outputs - group * GROUP); ++o)
        for (int64_t k = 0; k < std::min(SPAN, inputs - tile * SPAN); ++k)
          to[(group * GROUP + o) * inputs + tile * SPAN + k] = bits[k / 2 * GROUP * 2 + o * 2 + k % 2];
    }
  });
  return out;
}

} // namespace

TORCH_LIBRARY_FRAGMENT(parley, library) {
  library.def(
      "bf16_linear(Tensor inputs, Tensor codes, Tensor table, Tensor starts, Tensor exceptions, Tensor? bias, int outputs)"
      " -> Tensor");
  library.impl("bf16_linear", c10::DispatchKey::CPU, bf16_linear);
  library.def("bf16_pack(Tensor weight) -> (Tensor, Tensor, Tensor, Tensor)");
  library.impl("bf16_pack", c10::DispatchKey::CPU, bf16_pack);
  library.def(
      "bf16_unpack(Tensor codes, Tensor table, Tensor starts, Tensor exceptions, int inputs, int outputs) -> Tensor");
  library.impl("bf16_unpack", c10::DispatchKey::CPU, bf16_unpack);
}

#endif
