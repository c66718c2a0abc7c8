// Attention of tokens that lie packed in one row, each over neighbouring positions of one slot of the cache.
//
// Tokens that follow each other in the same slot go through its keys together, with all query heads of one key/value
// head: each key is read once for them. Sums are in float32 throughout; bfloat16 is multiplied as it is, two products an
// addition, where the processor can.
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

constexpr int64_t ROWS = 24;        // queries that go through the keys together
constexpr int64_t KEYS = 256;       // keys whose scores are held at once; a multiple of WIDTH
constexpr int TALL = 8;             // rows that are scored at a time
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

  static const Each* weights(const float* from, int64_t, int64_t, Each*) { return from; }

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

  static const Each* weights(const float* from, int64_t rows, int64_t n, Each* to) {
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t i = row * KEYS; i < row * KEYS + n; i += PAIR)
        _mm512_storeu_si512(to + i / STEP, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + i + WIDTH),
                                                                        _mm512_loadu_ps(from + i)));
    return to;
  }

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

// scores[row][key] = queries[row] . keys[key], for WIDTH keys that lie in columns: no sum goes across a register, and
// none depends on which other rows there are. Each is two, because an addition takes longer than to begin the next.
template <int COUNT, typename P>
inline void score_columns(const typename P::Each* queries, int64_t span, const typename P::Each* columns, int64_t steps,
                          float scale, float* scores) {
  Floats sums[COUNT][2];
#pragma GCC unroll 8
  for (int r = 0; r < COUNT; ++r) sums[r][0] = sums[r][1] = Floats(0.f);
  for (int64_t i = 0; i < steps; i += 2)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const auto column = P::read(columns + (i + half) * WIDTH);
#pragma GCC unroll 8
      for (int r = 0; r < COUNT; ++r) sums[r][half] = P::add(sums[r][half], queries[r * span + i + half], column);
    }
#pragma GCC unroll 8
  for (int r = 0; r < COUNT; ++r) ((sums[r][0] + sums[r][1]) * Floats(scale)).store(scores + r * KEYS);
}

// out[row] += weights[row][key] * values[key]
template <typename P, int PAIRS, int COUNT, typename T>
inline void mix(const typename P::Each* weights, const T* values, int64_t stride, int64_t size, int64_t n, float* out) {
  Floats sums[COUNT][2 * PAIRS];
#pragma GCC unroll 4
  for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 16
    for (int i = 0; i < 2 * PAIRS; ++i) sums[r][i] = Floats::loadu(out + r * PAIRS * PAIR + i * WIDTH);
  for (int64_t key = 0; key < n; key += P::STEP) {
    for (int64_t each = 0; each < P::STEP; ++each) fetch(values + (key + each + AHEAD) * stride, size);
    typename P::Many row[2 * PAIRS];
#pragma GCC unroll 8
    for (int i = 0; i < PAIRS; ++i)
      std::tie(row[2 * i], row[2 * i + 1]) =
          P::rows(values + key * stride + i * PAIR, stride, n - key, size - i * PAIR);
#pragma GCC unroll 4
    for (int r = 0; r < COUNT; ++r) {
      const auto weight = weights[(r * KEYS + key) / P::STEP];
#pragma GCC unroll 16
      for (int i = 0; i < 2 * PAIRS; ++i) sums[r][i] = P::add(sums[r][i], weight, row[i]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 16
    for (int i = 0; i < 2 * PAIRS; ++i) sums[r][i].store(out + r * PAIRS * PAIR + i * WIDTH);
}

// One row's softmax, as far as it has come.
struct Softmax {
  float peak = NOTHING, sum = 0;

  // Scores to weights, 0 outside of from .. to; -> what the weights before these must be multiplied with.
  float add(float* scores, int64_t from, int64_t to, int64_t n) {
    const int64_t padded = (n + PAIR - 1) / PAIR * PAIR;
    std::fill(scores, scores + from, NOTHING);
    std::fill(scores + to, scores + padded, NOTHING);
    Floats highest(peak);
    for (int64_t i = 0; i < padded; i += WIDTH) highest = larger_of(highest, Floats::loadu(scores + i));
    const float before = peak;
    peak = largest(highest);
    Floats weights(0.f);
    for (int64_t i = 0; i < padded; i += WIDTH) {
      const Floats each = from < to ? (Floats::loadu(scores + i) - Floats(peak)).exp_u20() : Floats(0.f);
      each.store(scores + i);
      weights = weights + each;
    }
    const float fade = before == peak || sum == 0 ? 1 : std::exp(before - peak);
    sum = sum * fade + total(weights);
    return fade;
  }
};

template <typename T, int PAIRS>
class Worker {
  using P = Product<T>;
  using Each = typename P::Each;
  static constexpr int TILE = PAIRS <= 2 ? 4 : PAIRS <= 4 ? 2 : 1; // rows whose sums fit into registers
  static constexpr int64_t SPAN = PAIRS * PAIR;
  static constexpr int64_t STEPS = SPAN / P::STEP;

  const Call& call;
  at::Tensor& out;
  const int64_t group;
  std::vector<Each> queries, weights, lines, columns;
  std::vector<float> mixed, scores;
  std::vector<Softmax> softmax;

 public:
  Worker(const Call& call, at::Tensor& out) : call(call), out(out), group(call.group()) {
    const int64_t rows = std::max(ROWS, group);
    queries.resize(rows * STEPS), mixed.resize(rows * SPAN), scores.resize(rows * KEYS), softmax.resize(rows);
    weights.resize(rows * KEYS / P::STEP), lines.resize(WIDTH * STEPS), columns.resize(WIDTH * STEPS);
  }

  void operator()(const Item& item) {
    const int64_t rows = (item.end - item.begin) * group;
    read_queries(item, rows);
    std::fill_n(mixed.begin(), rows * SPAN, 0.f);
    for (int64_t row = 0; row < rows; ++row)
      softmax[row] = call.sinks ? Softmax{call.sinks[head_of(item, row)], 1} : Softmax();
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
      fade(row, softmax[row].add(scores.data() + row * KEYS, from, to, n));
    }
    const Each* mixing = P::weights(scores.data(), rows, n, weights.data());
    tiles<TILE>(rows, [&](int64_t row, auto count) {
      mix<P, PAIRS, count()>(mixing + row * KEYS / P::STEP, values + base * value_step, value_step, call.values.size(3),
                             n, mixed.data() + row * SPAN);
    });
  }

  // Keys are turned into columns once for all rows; those behind the last are whatever lay there, and never looked at.
  void turn_and_score(int64_t rows, const T* keys, int64_t step, int64_t n) {
    const int64_t size = call.keys.size(3), steps = (size + P::STEP - 1) / P::STEP;
    const bool whole = sizeof(T) * P::STEP == sizeof(Each) && size % (P::STEP * WIDTH) == 0 && step % P::STEP == 0;
    for (int64_t start = 0; start < n; start += WIDTH) {
      const int64_t end = std::min(start + WIDTH, n);
      for (int64_t key = start; key < end; ++key) fetch(keys + (key + AHEAD) * step, size);
      if (whole && end == start + WIDTH) {
        turn(reinterpret_cast<const Each*>(keys + start * step), step / P::STEP, steps);
      } else {
        for (int64_t key = start; key < end; ++key)
          P::copy(keys + key * step, size, lines.data() + (key - start) * STEPS);
        turn(lines.data(), STEPS, steps);
      }
      tiles<TALL>(rows, [&](int64_t row, auto count) {
        score_columns<count(), P>(queries.data() + row * STEPS, STEPS, columns.data(), steps, call.scale,
                                  scores.data() + row * KEYS + start);
      });
    }
  }

  void cap(int64_t rows, int64_t n) {
    const Floats limit(call.softcap);
    for (int64_t row = 0; row < rows; ++row)
      for (float* at = scores.data() + row * KEYS; at < scores.data() + row * KEYS + n; at += WIDTH)
        (limit * (Floats::loadu(at) / limit).tanh()).store(at);
  }

  void turn(const Each* from, int64_t span, int64_t steps) { // as floats, which torch has something for
    static_assert(sizeof(Each) == sizeof(float));
    for (int64_t i = 0; i < steps; i += WIDTH)
      at::vec::transpose_mxn<float, WIDTH, WIDTH>(reinterpret_cast<const float*>(from + i), span,
                                                  reinterpret_cast<float*>(columns.data() + i * WIDTH), WIDTH);
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
      const Floats by(1 / softmax[row].sum);
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
