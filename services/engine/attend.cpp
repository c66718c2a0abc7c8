// Attention of tokens that lie packed in one row, each over neighbouring positions of one slot of the cache.
//
// Tokens that follow each other in the same slot go through its keys together, with all query heads of one key/value
// head: each key is read once for them. Sums are in float32 throughout.
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
constexpr int64_t AHEAD = 8;        // keys that are fetched before they are needed: slots are no stream to the hardware
constexpr int64_t LINE = 64;        // bytes
constexpr float NOTHING = std::numeric_limits<float>::lowest() / 2; // its exp is 0, also less something

struct Call {
  const at::Tensor &queries, &keys, &values; // [tokens, heads, size], [slots, heads, positions, size or width]
  const int64_t *slots, *begins, *ends;      // of each token
  float scale;

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

// One row of numbers in registers, zeros behind its `size`.
template <int PAIRS>
struct Row {
  Floats part[2 * PAIRS];

  template <typename T>
  static inline Row read(const T* from, int64_t size) {
    Row row;
#pragma GCC unroll 8
    for (int i = 0; i < PAIRS; ++i)
      std::tie(row.part[2 * i], row.part[2 * i + 1]) = load(from + i * PAIR, size - i * PAIR);
    return row;
  }
};

template <typename T>
inline void fetch(const T* row, int64_t size) {
  for (int64_t i = 0; i < size; i += LINE / sizeof(T)) __builtin_prefetch(row + i);
}

// scores[row][key] = queries[row] . keys[key], for WIDTH keys that lie in columns: no sum goes across a register, and
// none depends on which other rows there are.
template <int COUNT>
inline void score_columns(const float* queries, int64_t span, const float* columns, int64_t size, float* scores) {
  Floats sums[COUNT];
#pragma GCC unroll 8
  for (int r = 0; r < COUNT; ++r) sums[r] = Floats(0.f);
  for (int64_t i = 0; i < size; ++i) {
    const Floats column = Floats::loadu(columns + i * WIDTH);
#pragma GCC unroll 8
    for (int r = 0; r < COUNT; ++r) sums[r] = at::vec::fmadd(Floats(queries[r * span + i]), column, sums[r]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < COUNT; ++r) sums[r].store(scores + r * KEYS);
}

// out[row] += weights[row][key] * values[key]
template <int PAIRS, int COUNT, typename T>
inline void mix(const float* weights, const T* values, int64_t stride, int64_t size, int64_t n, float* out) {
  Floats sums[COUNT][2 * PAIRS];
#pragma GCC unroll 4
  for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 16
    for (int i = 0; i < 2 * PAIRS; ++i) sums[r][i] = Floats::loadu(out + r * PAIRS * PAIR + i * WIDTH);
  for (int64_t key = 0; key < n; ++key) {
    fetch(values + (key + AHEAD) * stride, size);
    const auto row = Row<PAIRS>::read(values + key * stride, size);
#pragma GCC unroll 4
    for (int r = 0; r < COUNT; ++r) {
      const Floats weight(weights[r * KEYS + key]);
#pragma GCC unroll 16
      for (int i = 0; i < 2 * PAIRS; ++i) sums[r][i] = at::vec::fmadd(weight, row.part[i], sums[r][i]);
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
    const int64_t padded = (n + WIDTH - 1) / WIDTH * WIDTH;
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
  static constexpr int TILE = PAIRS <= 2 ? 4 : PAIRS <= 4 ? 2 : 1; // rows whose sums fit into registers
  static constexpr int64_t SPAN = PAIRS * PAIR;

  const Call& call;
  at::Tensor& out;
  const int64_t group;
  std::vector<float> queries, mixed, scores, lines, columns;
  std::vector<Softmax> softmax;

 public:
  Worker(const Call& call, at::Tensor& out) : call(call), out(out), group(call.group()) {
    const int64_t rows = std::max(ROWS, group);
    queries.resize(rows * SPAN), mixed.resize(rows * SPAN), scores.resize(rows * KEYS), softmax.resize(rows);
    lines.resize(WIDTH * SPAN), columns.resize(WIDTH * SPAN);
  }

  void operator()(const Item& item) {
    const int64_t rows = (item.end - item.begin) * group;
    read_queries(item, rows);
    std::fill_n(mixed.begin(), rows * SPAN, 0.f);
    std::fill_n(softmax.begin(), rows, Softmax());
    const T* keys = slot_of(call.keys, item);
    const T* values = slot_of(call.values, item);
    const int64_t low = *std::min_element(call.begins + item.begin, call.begins + item.end);
    const int64_t high = *std::max_element(call.ends + item.begin, call.ends + item.end);
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
      const auto query = Row<PAIRS>::read(from.template const_data_ptr<T>() + place, from.size(2));
      for (int i = 0; i < 2 * PAIRS; ++i)
        (query.part[i] * Floats(call.scale)).store(queries.data() + row * SPAN + i * WIDTH);
    }
  }

  void attend(const Item& item, int64_t rows, int64_t base, int64_t n, const T* keys, const T* values) {
    const int64_t key_step = call.keys.stride(2), value_step = call.values.stride(2);
    turn_and_score(rows, keys + base * key_step, key_step, n);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t token = token_of(item, row);
      const int64_t from = std::clamp<int64_t>(call.begins[token] - base, 0, n);
      const int64_t to = std::clamp<int64_t>(call.ends[token] - base, from, n);
      fade(row, softmax[row].add(scores.data() + row * KEYS, from, to, n));
    }
    tiles<TILE>(rows, [&](int64_t row, auto count) {
      mix<PAIRS, count()>(scores.data() + row * KEYS, values + base * value_step, value_step, call.values.size(3), n,
                          mixed.data() + row * SPAN);
    });
  }

  // Keys are turned into columns once for all rows; those behind the last are whatever lay there, and never looked at.
  void turn_and_score(int64_t rows, const T* keys, int64_t step, int64_t n) {
    const int64_t size = call.keys.size(3);
    for (int64_t start = 0; start < n; start += WIDTH) {
      for (int64_t key = start; key < std::min(start + WIDTH, n); ++key) {
        fetch(keys + (key + AHEAD) * step, size);
        const auto row = Row<PAIRS>::read(keys + key * step, size);
        for (int i = 0; i < 2 * PAIRS; ++i) row.part[i].store(lines.data() + (key - start) * SPAN + i * WIDTH);
      }
      for (int64_t i = 0; i < size; i += WIDTH)
        at::vec::transpose_mxn<float, WIDTH, WIDTH>(lines.data() + i, SPAN, columns.data() + i * WIDTH, WIDTH);
      tiles<TALL>(rows, [&](int64_t row, auto count) {
        score_columns<count()>(queries.data() + row * SPAN, SPAN, columns.data(), size,
                               scores.data() + row * KEYS + start);
      });
    }
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
                  const at::Tensor& begins, const at::Tensor& ends, double scale) {
  const at::Tensor rows = rows_of(queries), last = ends.contiguous(), first = begins.contiguous();
  const at::Tensor places = slots.contiguous();
  TORCH_CHECK(keys.stride(-1) == 1 && values.stride(-1) == 1, "keys and values lie in rows");
  at::Tensor out = at::empty({queries.size(0), queries.size(1), values.size(3)}, queries.options());
  const Call call{rows,
                  keys,
                  values,
                  places.const_data_ptr<int64_t>(),
                  first.const_data_ptr<int64_t>(),
                  last.const_data_ptr<int64_t>(),
                  static_cast<float>(scale)};
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
      "attend(Tensor queries, Tensor keys, Tensor values, Tensor slots, Tensor begins, Tensor ends, float scale)"
      " -> Tensor");
  library.impl("attend", c10::DispatchKey::CPU, attend);
}
