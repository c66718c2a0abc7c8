// Which keys a step's tokens see, who goes through them together, and the softmax of their scores: what attention has in
// common whatever numbers keys and values are kept in.
#pragma once

#include "vectors.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
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
  int64_t value_size;   // numbers; a row of `values` may hold more

  int64_t group() const { return queries.size(1) / keys.size(1); }
  int64_t key_size() const { return queries.size(2); }
};

// A row of 8-bit numbers ends with what each of them is to be multiplied with.
constexpr int64_t SCALE_BYTES = sizeof(float);
inline float scale_of(const int8_t* row, int64_t size) {
  float scale;
  std::memcpy(&scale, row + size, sizeof scale);
  return scale;
}

// Tokens begin .. end, neighbours in the same slot, with one of the key/value heads.
struct Item {
  int64_t begin, end, head;
};

// lambdas, because a pointer to a function would be called once a step of the reduction
constexpr auto sum_of = [](Floats a, Floats b) { return a + b; };
constexpr auto larger_of = [](Floats a, Floats b) { return at::vec::maximum(a, b); };
inline float total(Floats v) { return at::vec::vec_reduce_all<float>(sum_of, v); }
inline float largest(Floats v) { return at::vec::vec_reduce_all<float>(larger_of, v); }

template <typename T>
inline void fetch(const T* row, int64_t size) {
  for (int64_t i = 0; i < size; i += LINE / sizeof(T)) __builtin_prefetch(row + i);
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

  // Scores to weights, 0 outside of from .. to, which `put` is given a PAIR at a time; -> what the weights before these
  // must be multiplied with.
  template <typename Put>
  float add(float* scores, int64_t from, int64_t to, int64_t n, const Put& put) {
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
      put(i, low, high);
      sum = sum + low + high;
    }
    sum.store(sums);
    return fade;
  }

  float sum() const { return total(Floats::loadu(sums)); }
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

// Where an item's rows begin.
template <typename C>
const C* slot_of(const Call& call, const at::Tensor& cache, const Item& item) {
  const int64_t slot = call.slots[item.begin];
  return cache.const_data_ptr<C>() + slot * cache.stride(0) + item.head * cache.stride(1);
}

// Of all that its tokens see. `whole`: at a multiple of KEYS, so that what is rounded together does not depend on who
// goes through the keys together.
inline int64_t first_key(const Call& call, const Item& item, bool whole) {
  const int64_t low = *std::min_element(call.begins + item.begin, call.begins + item.end);
  return whole ? low / KEYS * KEYS : low;
}

inline void cap_scores(const Call& call, float* scores, int64_t rows, int64_t n) {
  const Floats limit(call.softcap);
  for (int64_t row = 0; row < rows; ++row)
    for (float* at = scores + row * KEYS; at < scores + row * KEYS + n; at += WIDTH)
      (limit * (Floats::loadu(at) / limit).tanh()).store(at);
}

// Each on a thread of its own, with a worker that `make` makes.
template <typename Make>
void for_each_item(const Call& call, const Make& make) {
  const auto items = items_of(call);
  std::atomic<size_t> next{0}; // items differ in length: whoever is done takes the next one
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    auto work = make();
    for (size_t i; (i = next++) < items.size();) work(items[i]);
  });
}

// So many rows at a time, then as many as are left.
template <int COUNT, typename Tile>
void tiles(int64_t rows, const Tile& tile, int64_t row = 0) {
  for (; row + COUNT <= rows; row += COUNT) tile(row, std::integral_constant<int, COUNT>());
  if constexpr (COUNT > 1)
    if (row < rows) tiles<COUNT - 1>(rows, tile, row);
}

} // namespace
