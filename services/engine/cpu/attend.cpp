// Attention of tokens that lie packed in one row, each over neighbouring positions of one slot of the cache.
//
// Tokens that follow each other in the same slot go through its keys together, with all query heads of one key/value
// head: each key is read, and laid out to be multiplied, once for them. Sums are in float32 throughout; bfloat16 is
// multiplied as it is, two products an addition, where the processor can.
#include "vectors.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

namespace {

constexpr int64_t ROWS = 96;        // queries that go through the keys together
constexpr int64_t KEYS = 192;       // keys whose scores are held at once; a multiple of PAIR and of WIDE * WIDTH
constexpr int TALL = 8;             // rows that are scored at a time
constexpr int SUMS = WIDTH == 16 ? 24 : 16; // registers of sums
constexpr int WIDE = SUMS / TALL;   // registers of keys that rows are scored with
constexpr int64_t FEW = 4;          // rows for which values are read where they lie
constexpr int64_t AHEAD = 24;       // keys that are fetched before they are needed: slots are no stream to the hardware
constexpr int64_t LINE = 64;        // bytes
constexpr float NOTHING = std::numeric_limits<float>::lowest() / 2; // its exp is 0, also less something

struct Call {
  const at::Tensor &queries, &keys, &values; // [tokens, heads, size], [slots, heads, positions, size or width]
  const int64_t *slots, *begins, *ends;      // of each token
  float scale, softcap; // 0: scores are as they are
  const float* sinks;   // of each head: its score of nothing; null: there is none

  int64_t group() const { return queries.size(1) / keys.size(1); }
};

// Tokens begin .. end, neighbours in the same slot, with one of the key/value heads.
struct Item {
  int64_t begin, end, head;
};

// lambdas, because a pointer to a function would be called once a step of the reduction
constexpr auto sum_of = [](Floats a, Floats b) { return a + b; };
constexpr auto larger_of = [](Floats a, Floats b) { return at::vec::maximum(a, b); };
inline float total(Floats v) { return at::vec::vec_reduce_all<float>(sum_of, v); }
inline float largest(Floats v) { return at::vec::vec_reduce_all<float>(larger_of, v); }

// What is multiplied: STEP neighbours, of a row or of a column, with as many of WIDTH others.
template <typename T>
struct Product {
  static constexpr int64_t STEP = 1;
  using Each = float;
  using Many = Floats;

  static Floats add(Floats sum, Each each, Many many) { return at::vec::fmadd(Floats(each), many, sum); }
  static Many read(const Each* from) { return Floats::loadu(from); }

  // `size` numbers, zeros up to a multiple of PAIR.
  static void copy(const T* from, int64_t size, Each* to) {
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

template <typename T>
inline void fetch(const T* row, int64_t size) {
  for (int64_t i = 0; i < size; i += LINE / sizeof(T)) __builtin_prefetch(row + i);
}

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

// e^x for x <= 0, off by less than 3e-7 of it; 0 where that is too small for a float.
inline Floats exp_of(Floats x) {
#ifdef CPU_CAPABILITY_AVX512
  const Floats y = Floats(_mm512_max_ps(_mm512_set1_ps(-200), x)) * Floats(1.44269504f); // NaN stays NaN
  const __m512 whole = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Floats part = y - Floats(whole); // 2^part as a polynomial: the minimax one of degree 5 on -1/2 .. 1/2
  Floats sum(1.3264661e-3f);
  for (const float each : {9.6714906e-3f, 5.5507336e-2f, 2.40222424e-1f, 6.93147004e-1f, 1.f})
    sum = at::vec::fmadd(sum, part, Floats(each));
  return _mm512_scalef_ps(sum, whole);
#else
  return x.exp_u20();
#endif
}

// One row's softmax, as far as it has come.
struct Softmax {
  float peak = NOTHING;
  float sums[WIDTH] = {}; // added up at the end

  // Scores to weights, 0 outside of from .. to; -> what the weights before these must be multiplied with.
  template <typename P>
  float add(float* scores, int64_t from, int64_t to, int64_t n, typename P::Each* weights) {
    const int64_t padded = (n + PAIR - 1) / PAIR * PAIR;
    std::fill(scores, scores + from, NOTHING);
    std::fill(scores + to, scores + padded, NOTHING);
    Floats highest(peak);
    for (int64_t i = 0; i < padded; i += WIDTH) highest = larger_of(highest, Floats::loadu(scores + i));
    const float before = peak;
    peak = largest(highest);
    const float fade = before == peak ? 1 : std::exp(before - peak);
    const auto weigh = [&](int64_t i) {
      return from < to ? exp_of(Floats::loadu(scores + i) - Floats(peak)) : Floats(0.f);
    };
    Floats sum = Floats::loadu(sums) * Floats(fade);
    for (int64_t i = 0; i < padded; i += PAIR) {
      const Floats low = weigh(i), high = weigh(i + WIDTH);
      P::put(low, high, weights + i / P::STEP);
      sum = sum + low + high;
    }
    sum.store(sums);
    return fade;
  }

  float sum() const { return total(Floats::loadu(sums)); }
};

// What a thread works with, kept: to ask for memory and give it back costs as much as to fill it.
template <typename Each>
struct Room {
  std::vector<Each> queries, weights, lines, columns, values;
  std::vector<float> mixed, scores;
  std::vector<Softmax> softmax;

  static Room& mine() {
    static thread_local Room room;
    return room;
  }
};

template <typename T, int PAIRS>
class Worker {
  using P = Product<T>;
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
    const T* keys = slot_of(call.keys, item);
    const T* values = slot_of(call.values, item);
    const int64_t low = *std::min_element(call.begins + item.begin, call.begins + item.end);
    const int64_t high = *std::max_element(call.ends + item.begin, call.ends + item.end);
    for (int64_t key = low; key < std::min(low + AHEAD, high); ++key)
      fetch(values + key * call.values.stride(2), call.values.size(3));
    for (int64_t base = low; base < high; base += KEYS)
      attend(item, rows, base, std::min(KEYS, high - base), keys, values);
    write(item, rows);
  }

 private:
  const T* slot_of(const at::Tensor& cache, const Item& item) const {
    const int64_t slot = call.slots[item.begin];
    return cache.template const_data_ptr<T>() + slot * cache.stride(0) + item.head * cache.stride(1);
  }

  int64_t token_of(const Item& item, int64_t row) const { return item.begin + row / group; }
  int64_t head_of(const Item& item, int64_t row) const { return item.head * group + row % group; }

  void read_queries(const Item& item, int64_t rows) {
    const at::Tensor& from = call.queries;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t place = token_of(item, row) * from.stride(0) + head_of(item, row) * from.stride(1);
      P::copy(from.template const_data_ptr<T>() + place, from.size(2), queries.data() + row * STEPS);
    }
  }

  void attend(const Item& item, int64_t rows, int64_t base, int64_t n, const T* keys, const T* values) {
    const int64_t key_step = call.keys.stride(2), value_step = call.values.stride(2);
    turn_and_score(rows, keys + base * key_step, key_step, n);
    if (call.softcap != 0) cap(rows, n);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t token = token_of(item, row);
      const int64_t from = std::clamp<int64_t>(call.begins[token] - base, 0, n);
      const int64_t to = std::clamp<int64_t>(call.ends[token] - base, from, n);
      fade(row, softmax[row].template add<P>(scores.data() + row * KEYS, from, to, n,
                                             weights.data() + row * KEYS / P::STEP));
    }
    const ValuesInPlace<P, PAIRS, T> in_place{values + base * value_step, value_step, call.values.size(3), n};
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
  void turn_and_score(int64_t rows, const T* keys, int64_t step, int64_t n) {
    const int64_t size = call.keys.size(3), steps = (size + P::STEP - 1) / P::STEP;
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

  void turn_some(const T* keys, int64_t step, int64_t count, Each* to) {
    const int64_t size = call.keys.size(3), steps = (size + P::STEP - 1) / P::STEP;
    const bool whole = sizeof(T) * P::STEP == sizeof(Each) && size % (P::STEP * WIDTH) == 0 && step % P::STEP == 0;
    for (int64_t key = 0; key < count; ++key) fetch(keys + (key + AHEAD) * step, size);
    if (whole && count == WIDTH) return turn(reinterpret_cast<const Each*>(keys), step / P::STEP, steps, to);
    for (int64_t key = 0; key < count; ++key) P::copy(keys + key * step, size, lines.data() + key * STEPS);
    turn(lines.data(), STEPS, steps, to);
  }

  void cap(int64_t rows, int64_t n) {
    const Floats limit(call.softcap);
    for (int64_t row = 0; row < rows; ++row)
      for (float* at = scores.data() + row * KEYS; at < scores.data() + row * KEYS + n; at += WIDTH)
        (limit * (Floats::loadu(at) / limit).tanh()).store(at);
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

  // So many rows at a time, then as many as are left.
  template <int COUNT, typename Tile>
  static void tiles(int64_t rows, const Tile& tile, int64_t row = 0) {
    for (; row + COUNT <= rows; row += COUNT) tile(row, std::integral_constant<int, COUNT>());
    if constexpr (COUNT > 1)
      if (row < rows) tiles<COUNT - 1>(rows, tile, row);
  }
};

// Tokens with no key in common, of texts that lie behind each other, go apart: each would score the other's keys too.
std::vector<Item> items_of(const Call& call) {
  const int64_t tokens = call.queries.size(0), most = std::max<int64_t>(1, ROWS / call.group());
  std::vector<Item> items;
  for (int64_t begin = 0, end; begin < tokens; begin = end) {
    const auto belongs = [&](int64_t token) {
      return call.slots[token] == call.slots[begin] && call.begins[token] < call.ends[begin];
    };
    for (end = begin + 1; end < tokens && end - begin < most && belongs(end);) ++end;
    for (int64_t head = 0; head < call.keys.size(1); ++head) items.push_back({begin, end, head});
  }
  return items;
}

template <typename T, int PAIRS>
void run(const Call& call, at::Tensor& out) {
  const auto items = items_of(call);
  std::atomic<size_t> next{0}; // items differ in length: whoever is done takes the next one
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    Worker<T, PAIRS> work(call, out);
    for (size_t i; (i = next++) < items.size();) work(items[i]);
  });
}

template <typename T>
void run(const Call& call, at::Tensor& out) {
  const int64_t pairs = (std::max(call.keys.size(3), call.values.size(3)) + PAIR - 1) / PAIR;
  TORCH_CHECK(pairs <= 16, "heads of ", call.keys.size(3), " numbers are too wide");
  if (pairs == 1) return run<T, 1>(call, out);
  if (pairs == 2) return run<T, 2>(call, out);
  if (pairs <= 4) return run<T, 4>(call, out);
  return pairs <= 8 ? run<T, 8>(call, out) : run<T, 16>(call, out);
}

at::Tensor rows_of(const at::Tensor& tensor) { return tensor.stride(-1) == 1 ? tensor : tensor.contiguous(); }

at::Tensor attend(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values, const at::Tensor& slots,
                  const at::Tensor& begins, const at::Tensor& ends, double scale, double softcap,
                  const std::optional<at::Tensor>& sinks) {
  const at::Tensor rows = rows_of(queries), last = ends.contiguous(), first = begins.contiguous();
  const at::Tensor places = slots.contiguous();
  TORCH_CHECK(keys.stride(-1) == 1 && values.stride(-1) == 1, "keys and values lie in rows");
  const at::Tensor nothing = sinks ? sinks->contiguous() : at::Tensor();
  TORCH_CHECK(!sinks || (nothing.numel() == queries.size(1) && nothing.scalar_type() == at::kFloat), "a sink a head");
  at::Tensor out = at::empty({queries.size(0), queries.size(1), values.size(3)}, queries.options());
  const Call call{rows,
                  keys,
                  values,
                  places.const_data_ptr<int64_t>(),
                  first.const_data_ptr<int64_t>(),
                  last.const_data_ptr<int64_t>(),
                  static_cast<float>(scale),
                  static_cast<float>(softcap),
                  sinks ? nothing.const_data_ptr<float>() : nullptr};
  switch (queries.scalar_type()) {
    case at::kFloat: run<float>(call, out); break;
    case at::kBFloat16: run<at::BFloat16>(call, out); break;
    case at::kHalf: run<at::Half>(call, out); break;
    default: TORCH_CHECK(false, "no attention in ", queries.scalar_type());
  }
  return out;
}

} // namespace

TORCH_LIBRARY(parley, library) {
  library.def(
      "attend(Tensor queries, Tensor keys, Tensor values, Tensor slots, Tensor begins, Tensor ends, float scale,"
      " float softcap, Tensor? sinks)"
      " -> Tensor");
  library.impl("attend", c10::DispatchKey::CPU, attend);
}
