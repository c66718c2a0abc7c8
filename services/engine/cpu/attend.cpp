// Attention of tokens that lie packed in one row, each over neighbouring positions of one slot of the cache.
//
// Tokens that follow each other in the same slot go through its keys together, with all query heads of one key/value
// head: each key is read, and laid out to be multiplied, once for them. Sums are in float32 throughout; bfloat16 is
// multiplied as it is, two products an addition, where the processor can.
//
// Keys and values of 8 bits have a path of their own where the processor multiplies such (attend_int8.h); elsewhere they
// are float32 once they are read.
#include "attend.h"
#include "attend_int8.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <type_traits>
#include <vector>

namespace {

// What is multiplied: STEP neighbours, of a row or of a column, with as many of WIDTH others.
template <typename T>
struct Product {
  static constexpr int64_t STEP = 1;
  using Each = float;
  using Many = Floats;

  static Floats add(Floats sum, Each each, Many many) { return at::vec::fmadd(Floats(each), many, sum); }
  static Many read(const Each* from) { return Floats::loadu(from); }

  // `size` numbers, zeros up to a multiple of PAIR.
  template <typename From>
  static void copy(const From* from, int64_t size, Each* to) {
    for (int64_t i = 0; i < size; i += PAIR) {
      const auto [low, high] = load(from + i, size - i);
      low.store(to + i), high.store(to + i + WIDTH);
    }
  }

  static void put(Floats low, Floats high, Each* to) { low.store(to), high.store(to + WIDTH); }
  static void write(Many many, Each* to) { many.store(to); }

  // PAIR numbers of one row, or as many as are left.
  static std::tuple<Many, Many> rows(const T* from, int64_t, int64_t, int64_t count) { return load(from, count); }
};

#if defined(CPU_CAPABILITY_AVX512) && defined(__AVX512BF16__)
template <>
struct Product<at::BFloat16> {
  static constexpr int64_t STEP = 2;
  using Each = int32_t; // two numbers
  using Many = __m512i;

  static Floats add(Floats sum, Each each, Many many) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(each), (__m512bh)many);
  }
  static Many read(const Each* from) { return _mm512_loadu_si512(from); }

  static void copy(const at::BFloat16* from, int64_t size, Each* to) {
    for (int64_t i = 0; i < size; i += PAIR) _mm512_storeu_si512(to + i / STEP, part(from + i, size - i));
  }

  static void put(Floats low, Floats high, Each* to) {
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
  static void write(Many many, Each* to) { _mm512_storeu_si512(to, many); }

  // Of two rows, the numbers in turns; of one, if no more are `left`.
  static std::tuple<Many, Many> rows(const at::BFloat16* from, int64_t stride, int64_t left, int64_t count) {
    const __m512i one = part(from, count), other = left > 1 ? part(from + stride, count) : _mm512_setzero_si512();
    return {_mm512_permutex2var_epi16(one, _mm512_loadu_si512(TURNS), other),
            _mm512_permutex2var_epi16(one, _mm512_loadu_si512(TURNS + PAIR), other)};
  }

 private:
  alignas(64) static constexpr int16_t TURNS[2 * PAIR] = {
      0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
      11, 43, 12, 44, 13, 45, 14, 46, 15, 47, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53,
      22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};

  static __m512i part(const at::BFloat16* from, int64_t count) {
    if (count >= PAIR) return _mm512_loadu_si512(from);
    return _mm512_maskz_loadu_epi16(count > 0 ? (__mmask32(1) << count) - 1 : 0, from);
  }
};
#endif

// scores[row][key] = queries[row] . keys[key], for WIDE * WIDTH keys that lie in columns: no sum goes across a
// register, and none depends on which other rows there are. Not inlined: it is the same for all widths of values.
template <int COUNT, typename P>
[[gnu::noinline]] void score_columns(const typename P::Each* queries, int64_t span, const typename P::Each* columns,
                                     int64_t steps, float scale, float* scores) {
  Floats sums[COUNT][WIDE];
#pragma GCC unroll 8
  for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < WIDE; ++c) sums[r][c] = Floats(0.f);
  for (int64_t i = 0; i < steps; ++i) {
    typename P::Many column[WIDE];
#pragma GCC unroll 4
    for (int c = 0; c < WIDE; ++c) column[c] = P::read(columns + (c * span + i) * WIDTH);
#pragma GCC unroll 8
    for (int r = 0; r < COUNT; ++r) {
      const auto query = queries[r * span + i];
#pragma GCC unroll 4
      for (int c = 0; c < WIDE; ++c) sums[r][c] = P::add(sums[r][c], query, column[c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < WIDE; ++c) (sums[r][c] * Floats(scale)).store(scores + r * KEYS + c * WIDTH);
}

// Values as they are multiplied: STEP neighbours of PAIRS * PAIR numbers. Where they lie, for a few rows.
template <typename P, int PAIRS, typename T>
struct ValuesInPlace {
  const T* values;
  int64_t stride, size, n;

  void row(int64_t key, typename P::Many* row) const {
    for (int64_t each = 0; each < P::STEP; ++each) fetch(values + (key + each + AHEAD) * stride, size);
#pragma GCC unroll 8
    for (int i = 0; i < PAIRS; ++i)
      std::tie(row[2 * i], row[2 * i + 1]) =
          P::rows(values + key * stride + i * PAIR, stride, n - key, size - i * PAIR);
  }
};

// Or laid out once for many rows.
template <typename P, int PAIRS>
struct ValuesInTurns {
  static constexpr int64_t LENGTH = PAIRS * PAIR; // of Each
  const typename P::Each* numbers;

  void row(int64_t key, typename P::Many* row) const {
#pragma GCC unroll 16
    for (int i = 0; i < 2 * PAIRS; ++i) row[i] = P::read(numbers + key / P::STEP * LENGTH + i * WIDTH);
  }
};

// out[row] += weights[row][key] * values[key]
template <typename P, int PAIRS, int COUNT, typename Values>
inline void mix(const typename P::Each* weights, const Values& values, int64_t n, float* out) {
  Floats sums[COUNT][2 * PAIRS];
#pragma GCC unroll 8
  for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 16
    for (int i = 0; i < 2 * PAIRS; ++i) sums[r][i] = Floats::loadu(out + r * PAIRS * PAIR + i * WIDTH);
  for (int64_t key = 0; key < n; key += P::STEP) {
    typename P::Many row[2 * PAIRS];
    values.row(key, row);
#pragma GCC unroll 8
    for (int r = 0; r < COUNT; ++r) {
      const auto weight = weights[(r * KEYS + key) / P::STEP];
#pragma GCC unroll 16
      for (int i = 0; i < 2 * PAIRS; ++i) sums[r][i] = P::add(sums[r][i], weight, row[i]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 16
    for (int i = 0; i < 2 * PAIRS; ++i) sums[r][i].store(out + r * PAIRS * PAIR + i * WIDTH);
}

// What a thread works with, kept: to ask for memory and give it back costs as much as to fill it.
template <typename Each>
struct Room {
  std::vector<Each> queries, weights, lines, columns, values;
  std::vector<float> mixed, scores, key_scales, value_scales;
  std::vector<Softmax> softmax;

  static Room& mine() {
    static thread_local Room room;
    return room;
  }
};

// Queries in T, keys and values in C.
template <typename T, typename C, int PAIRS>
class Worker {
  using P = Product<C>;
  static constexpr bool SCALED = std::is_same_v<C, int8_t>;
  using Each = typename P::Each;
  static constexpr int TILE = std::max(1, SUMS / (2 * PAIRS)); // rows whose sums fit into registers
  static constexpr int64_t SPAN = PAIRS * PAIR;
  static constexpr int64_t STEPS = SPAN / P::STEP;

  const Call& call;
  at::Tensor& out;
  const int64_t group;
  Room<Each>& room = Room<Each>::mine();
  std::vector<Each>&queries = room.queries, &weights = room.weights, &lines = room.lines, &columns = room.columns;
  std::vector<float>&mixed = room.mixed, &scores = room.scores;
  std::vector<Softmax>& softmax = room.softmax;

 public:
  Worker(const Call& call, at::Tensor& out) : call(call), out(out), group(call.group()) {
    const int64_t rows = std::max(ROWS, group);
    queries.resize(rows * STEPS), mixed.resize(rows * SPAN), scores.resize(rows * KEYS), softmax.resize(rows);
    weights.resize(rows * KEYS / P::STEP), lines.resize(WIDTH * STEPS), columns.resize(WIDE * WIDTH * STEPS);
    room.values.resize(KEYS / P::STEP * SPAN);
  }

  void operator()(const Item& item) {
    const int64_t rows = (item.end - item.begin) * group;
    read_queries(item, rows);
    std::fill_n(mixed.begin(), rows * SPAN, 0.f);
    for (int64_t row = 0; row < rows; ++row)
      softmax[row] = call.sinks ? Softmax{call.sinks[head_of(item, row)], {1}} : Softmax();
    const C* keys = slot_of(call.keys, item);
    const C* values = slot_of(call.values, item);
    const int64_t low = first_key(call, item, SCALED);
    const int64_t high = *std::max_element(call.ends + item.begin, call.ends + item.end);
    for (int64_t key = low; key < std::min(low + AHEAD, high); ++key)
      fetch(values + key * call.values.stride(2), call.values.size(3));
    for (int64_t base = low; base < high; base += KEYS)
      attend(item, rows, base, std::min(KEYS, high - base), keys, values);
    write(item, rows);
  }

 private:
  const C* slot_of(const at::Tensor& cache, const Item& item) const { return ::slot_of<C>(call, cache, item); }
  int64_t token_of(const Item& item, int64_t row) const { return item.begin + row / group; }
  int64_t head_of(const Item& item, int64_t row) const { return item.head * group + row % group; }

  void read_queries(const Item& item, int64_t rows) {
    const at::Tensor& from = call.queries;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t place = token_of(item, row) * from.stride(0) + head_of(item, row) * from.stride(1);
      P::copy(from.template const_data_ptr<T>() + place, from.size(2), queries.data() + row * STEPS);
    }
  }

  void attend(const Item& item, int64_t rows, int64_t base, int64_t n, const C* keys, const C* values) {
    const int64_t key_step = call.keys.stride(2), value_step = call.values.stride(2);
    turn_and_score(rows, keys + base * key_step, key_step, n);
    if constexpr (SCALED) read_scales(keys + base * key_step, values + base * value_step, n);
    if constexpr (SCALED) scale_scores(rows);
    if (call.softcap != 0) cap_scores(call, scores.data(), rows, n);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t token = token_of(item, row);
      const int64_t from = std::clamp<int64_t>(call.begins[token] - base, 0, n);
      const int64_t to = std::clamp<int64_t>(call.ends[token] - base, from, n);
      const auto put = [&](int64_t key, Floats low, Floats high) {
        if constexpr (SCALED) low = scaled(low, key), high = scaled(high, key + WIDTH);
        P::put(low, high, weights.data() + (row * KEYS + key) / P::STEP);
      };
      fade(row, softmax[row].add(scores.data() + row * KEYS, from, to, n, put));
    }
    const ValuesInPlace<P, PAIRS, C> in_place{values + base * value_step, value_step, call.value_size, n};
    if (rows <= FEW) return mix_rows(rows, in_place, n);
    for (int64_t key = 0; key < n; key += P::STEP) {
      typename P::Many row[2 * PAIRS];
      in_place.row(key, row);
      for (int i = 0; i < 2 * PAIRS; ++i) P::write(row[i], room.values.data() + key / P::STEP * SPAN + i * WIDTH);
    }
    mix_rows(rows, ValuesInTurns<P, PAIRS>{room.values.data()}, n);
  }

  template <typename Values>
  void mix_rows(int64_t rows, const Values& values, int64_t n) {
    tiles<TILE>(rows, [&](int64_t row, auto count) {
      mix<P, PAIRS, count()>(weights.data() + row * KEYS / P::STEP, values, n, mixed.data() + row * SPAN);
    });
  }

  // Keys are turned into columns once for all rows; those behind the last are whatever lay there, and never looked at.
  void turn_and_score(int64_t rows, const C* keys, int64_t step, int64_t n) {
    const int64_t size = call.key_size(), steps = (size + P::STEP - 1) / P::STEP;
    for (int64_t start = 0; start < n; start += WIDE * WIDTH) {
      for (int c = 0; c < WIDE && start + c * WIDTH < n; ++c)
        turn_some(keys + (start + c * WIDTH) * step, step, std::min(WIDTH, n - start - c * WIDTH),
                  columns.data() + c * STEPS * WIDTH);
      tiles<TALL>(rows, [&](int64_t row, auto count) {
        score_columns<count(), P>(queries.data() + row * STEPS, STEPS, columns.data(), steps, call.scale,
                                  scores.data() + row * KEYS + start);
      });
    }
  }

  void turn_some(const C* keys, int64_t step, int64_t count, Each* to) {
    const int64_t size = call.key_size(), steps = (size + P::STEP - 1) / P::STEP;
    const bool whole = sizeof(C) * P::STEP == sizeof(Each) && size % (P::STEP * WIDTH) == 0 && step % P::STEP == 0;
    for (int64_t key = 0; key < count; ++key) fetch(keys + (key + AHEAD) * step, size);
    if (whole && count == WIDTH) return turn(reinterpret_cast<const Each*>(keys), step / P::STEP, steps, to);
    for (int64_t key = 0; key < count; ++key) P::copy(keys + key * step, size, lines.data() + key * STEPS);
    turn(lines.data(), STEPS, steps, to);
  }

  void read_scales(const C* keys, const C* values, int64_t n) {
    room.key_scales.assign(KEYS, 0), room.value_scales.assign(KEYS, 0);
    for (int64_t key = 0; key < n; ++key) {
      room.key_scales[key] = scale_of(keys + key * call.keys.stride(2), call.key_size());
      room.value_scales[key] = scale_of(values + key * call.values.stride(2), call.value_size);
    }
  }

  void scale_scores(int64_t rows) {
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t key = 0; key < KEYS; key += WIDTH) {
        float* at = scores.data() + row * KEYS + key;
        (Floats::loadu(at) * Floats::loadu(room.key_scales.data() + key)).store(at);
      }
  }

  // A weight of 0 stays one, whatever it would be multiplied with.
  Floats scaled(Floats weights, int64_t key) const {
    const Floats by = Floats::loadu(room.value_scales.data() + key);
    return Floats::blendv(weights * by, Floats(0.f), weights == Floats(0.f));
  }

  // As floats, which torch has something for.
  static void turn(const Each* from, int64_t span, int64_t steps, Each* to) {
    static_assert(sizeof(Each) == sizeof(float));
    for (int64_t i = 0; i < steps; i += WIDTH)
      at::vec::transpose_mxn<float, WIDTH, WIDTH>(reinterpret_cast<const float*>(from + i), span,
                                                  reinterpret_cast<float*>(to + i * WIDTH), WIDTH);
  }

  void fade(int64_t row, float by) {
    if (by == 1) return;
    for (float* at = mixed.data() + row * SPAN; at < mixed.data() + (row + 1) * SPAN; at += WIDTH)
      (Floats::loadu(at) * Floats(by)).store(at);
  }

  void write(const Item& item, int64_t rows) {
    const int64_t width = out.size(2);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t place = token_of(item, row) * out.stride(0) + head_of(item, row) * out.stride(1);
      T* to = out.template mutable_data_ptr<T>() + place;
      const float* from = mixed.data() + row * SPAN;
      const Floats by(1 / softmax[row].sum());
      for (int64_t i = 0; i < width; i += PAIR)
        store(Floats::loadu(from + i) * by, Floats::loadu(from + i + WIDTH) * by, to + i, width - i);
    }
  }
};

template <typename T, typename C, int PAIRS>
void run(const Call& call, at::Tensor& out) {
  for_each_item(call, [&] { return Worker<T, C, PAIRS>(call, out); });
}

template <typename T, typename C = T>
void run(const Call& call, at::Tensor& out) {
  const int64_t pairs = (std::max(call.key_size(), call.value_size) + PAIR - 1) / PAIR;
  TORCH_CHECK(pairs <= 16, "heads of ", call.key_size(), " numbers are too wide");
  if (pairs == 1) return run<T, C, 1>(call, out);
  if (pairs == 2) return run<T, C, 2>(call, out);
  if (pairs <= 4) return run<T, C, 4>(call, out);
  return pairs <= 8 ? run<T, C, 8>(call, out) : run<T, C, 16>(call, out);
}

at::Tensor rows_of(const at::Tensor& tensor) { return tensor.stride(-1) == 1 ? tensor : tensor.contiguous(); }

// Where the processor has instructions for it, unless the `plain` way is asked for.
void run_int8(const Call& call, at::Tensor& out, bool plain) {
  TORCH_CHECK(call.keys.size(3) == call.key_size() + SCALE_BYTES, "keys of another size");
  if (!plain && attend_int8(call, out)) return;
  run<float, int8_t>(call, out);
}

void run_any(const Call& call, at::Tensor& out) {
  switch (call.queries.scalar_type()) {
    case at::kFloat: return run<float>(call, out);
    case at::kBFloat16: return run<at::BFloat16>(call, out);
    case at::kHalf: return run<at::Half>(call, out);
    default: TORCH_CHECK(false, "no attention in ", call.queries.scalar_type());
  }
}

at::Tensor attend(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values, const at::Tensor& slots,
                  const at::Tensor& begins, const at::Tensor& ends, double scale, double softcap,
                  const std::optional<at::Tensor>& sinks, bool plain) {
  const bool rounded = keys.scalar_type() == at::kChar;
  const at::Tensor rows = rows_of(rounded ? queries.to(at::kFloat) : queries);
  const at::Tensor last = ends.contiguous(), first = begins.contiguous(), places = slots.contiguous();
  TORCH_CHECK(keys.stride(-1) == 1 && values.stride(-1) == 1, "keys and values lie in rows");
  TORCH_CHECK(values.scalar_type() == keys.scalar_type(), "keys and values of one type");
  TORCH_CHECK(rounded || keys.scalar_type() == queries.scalar_type(), "keys as queries are");
  const at::Tensor nothing = sinks ? sinks->contiguous() : at::Tensor();
  TORCH_CHECK(!sinks || (nothing.numel() == queries.size(1) && nothing.scalar_type() == at::kFloat), "a sink a head");
  const int64_t width = values.size(3) - (rounded ? SCALE_BYTES : 0);
  at::Tensor out = at::empty({queries.size(0), queries.size(1), width}, rows.options());
  const Call call{rows,
                  keys,
                  values,
                  places.const_data_ptr<int64_t>(),
                  first.const_data_ptr<int64_t>(),
                  last.const_data_ptr<int64_t>(),
                  static_cast<float>(scale),
                  static_cast<float>(softcap),
                  sinks ? nothing.const_data_ptr<float>() : nullptr,
                  width};
  if (rounded) run_int8(call, out, plain);
  else run_any(call, out);
  return out.to(queries.scalar_type());
}

} // namespace

TORCH_LIBRARY(parley, library) {
  library.def(
      "attend(Tensor queries, Tensor keys, Tensor values, Tensor slots, Tensor begins, Tensor ends, float scale,"
      " float softcap, Tensor? sinks, bool plain=False)"
      " -> Tensor");
  library.impl("attend", c10::DispatchKey::CPU, attend);
}
