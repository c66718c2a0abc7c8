// Attention over keys and values of 8 bits, multiplied as they are: four products a lane and instruction.
//
// A row of a key or a value ends with its scale, which is taken out of the sums: a key's is multiplied with its score, a
// value's with its weight. Queries and weights are rounded to 16 bits, of two codes of 8 bits each, which is finer than
// bfloat16. Sums over a head, and over KEYS keys, are whole numbers, hence exact.
#pragma once

#include "attend.h"

#include <bit>

#ifdef __AVX512VNNI__

namespace {

using Ints = __m512i;
using Codes = __m512i;

constexpr int64_t LANES = 16;
constexpr int64_t FOURS = LINE / 4;  // of a line, which one instruction adds up each
constexpr int PARTS = 2;             // of a number of 16 bits: the upper and the lower code
constexpr int FEWER = 4;             // rows that are scored at a time
constexpr int MIXED = 3;             // rows whose values are added up at a time
constexpr int64_t ZERO = 128;        // what is added to keys: one factor must be unsigned
constexpr int32_t UPPER = 127 * 128; // the largest query
constexpr float LARGEST = 65535;     // and the largest weight
static_assert(FEWER * PARTS * WIDE == SUMS && MIXED * PARTS * 4 == SUMS && KEYS % FOURS == 0);

inline Ints all(int32_t value) { return _mm512_set1_epi32(value); }

// Of a line, those that belong to a row with so many left.
inline __mmask64 first_of(int64_t left) { return left >= LINE ? ~__mmask64(0) : (__mmask64(1) << left) - 1; }

// sum += four products a lane. Written out, because the compiler moves sums between registers and memory around its own.
inline void add_products(Ints& sum, Codes from_zero, Codes with_sign) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(from_zero), "v"(with_sign));
}

inline void add_products(Ints& sum, Codes from_zero, const int32_t* four_with_sign) {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(from_zero), "m"(*four_with_sign));
}

// Sixteen rows of four codes a lane, turned into columns, with ZERO added.
inline void turn_lines(Codes (&rows)[LANES], int32_t* to) {
  Codes twos[LANES], fours[LANES];
  for (int i = 0; i < LANES; i += 2) {
    twos[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    twos[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < LANES; i += 4)
    for (int j = 0; j < 2; ++j) {
      fours[i + 2 * j] = _mm512_unpacklo_epi64(twos[i + j], twos[i + j + 2]);
      fours[i + 2 * j + 1] = _mm512_unpackhi_epi64(twos[i + j], twos[i + j + 2]);
    }
  const Codes zero = _mm512_set1_epi8(static_cast<char>(ZERO));
  for (int i = 0; i < 4; ++i) { // the columns i, i + 4, i + 8, i + 12
    const Codes low = _mm512_shuffle_i32x4(fours[i], fours[i + 4], 0x88);
    const Codes other_low = _mm512_shuffle_i32x4(fours[i + 8], fours[i + 12], 0x88);
    const Codes high = _mm512_shuffle_i32x4(fours[i], fours[i + 4], 0xdd);
    const Codes other_high = _mm512_shuffle_i32x4(fours[i + 8], fours[i + 12], 0xdd);
    const Codes columns[] = {_mm512_shuffle_i32x4(low, other_low, 0x88), _mm512_shuffle_i32x4(high, other_high, 0x88),
                             _mm512_shuffle_i32x4(low, other_low, 0xdd), _mm512_shuffle_i32x4(high, other_high, 0xdd)};
    for (int j = 0; j < 4; ++j)
      _mm512_storeu_si512(to + (4 * j + i) * LANES, _mm512_xor_si512(columns[j], zero));
  }
}

// Four rows of 8 bits, so that a lane has one number of each: `restore_order` is for what they are added up to.
inline void lay_fours(const Codes (&rows)[4], Codes (&to)[4]) {
  const Codes low = _mm512_unpacklo_epi8(rows[0], rows[1]), high = _mm512_unpackhi_epi8(rows[0], rows[1]);
  const Codes other_low = _mm512_unpacklo_epi8(rows[2], rows[3]), other_high = _mm512_unpackhi_epi8(rows[2], rows[3]);
  to[0] = _mm512_unpacklo_epi16(low, other_low), to[1] = _mm512_unpackhi_epi16(low, other_low);
  to[2] = _mm512_unpacklo_epi16(high, other_high), to[3] = _mm512_unpackhi_epi16(high, other_high);
}

// LINE sums: quarter j of register i belongs into quarter i of register j.
inline void restore_order(float* sums) {
  const __m512 a = _mm512_loadu_ps(sums), b = _mm512_loadu_ps(sums + LANES);
  const __m512 c = _mm512_loadu_ps(sums + 2 * LANES), d = _mm512_loadu_ps(sums + 3 * LANES);
  const __m512 ab = _mm512_shuffle_f32x4(a, b, 0x44), cd = _mm512_shuffle_f32x4(c, d, 0x44);
  const __m512 upper_ab = _mm512_shuffle_f32x4(a, b, 0xee), upper_cd = _mm512_shuffle_f32x4(c, d, 0xee);
  _mm512_storeu_ps(sums, _mm512_shuffle_f32x4(ab, cd, 0x88));
  _mm512_storeu_ps(sums + LANES, _mm512_shuffle_f32x4(ab, cd, 0xdd));
  _mm512_storeu_ps(sums + 2 * LANES, _mm512_shuffle_f32x4(upper_ab, upper_cd, 0x88));
  _mm512_storeu_ps(sums + 3 * LANES, _mm512_shuffle_f32x4(upper_ab, upper_cd, 0xdd));
}

struct Int8Room {
  std::vector<int32_t> queries; // [rows, PARTS, fours]
  std::vector<int32_t> starts;  // of each row: what takes ZERO out of its sums
  std::vector<float> query_scales, weight_scales;
  std::vector<int32_t> columns; // [WIDE, fours, LANES]
  std::vector<float> key_scales, value_scales, scores, mixed;
  std::vector<int32_t> weights; // [rows, PARTS, KEYS / 4]
  std::vector<Codes> values;    // [lines, KEYS / 4, 4]
  std::vector<Softmax> softmax;

  static Int8Room& mine() {
    static thread_local Int8Room room;
    return room;
  }
};

class Int8Worker {
  const Call& call;
  at::Tensor& out;
  const int64_t group, key_step, value_step;
  const int64_t lines, fours;              // of keys
  const int64_t value_lines, value_floats; // of values
  Int8Room& room = Int8Room::mine();

 public:
  Int8Worker(const Call& call, at::Tensor& out)
      : call(call), out(out), group(call.group()), key_step(call.keys.stride(2)), value_step(call.values.stride(2)),
        lines((call.key_size() + LINE - 1) / LINE), fours(lines * FOURS),
        value_lines((call.value_size + LINE - 1) / LINE), value_floats(value_lines * LINE) {
    const int64_t rows = std::max(ROWS, group);
    room.queries.resize(rows * PARTS * fours), room.starts.resize(rows);
    room.query_scales.resize(rows), room.weight_scales.resize(rows);
    room.columns.resize(WIDE * fours * LANES), room.scores.resize(rows * KEYS), room.mixed.resize(rows * value_floats);
    room.weights.resize(rows * PARTS * KEYS / 4), room.values.resize(value_lines * KEYS), room.softmax.resize(rows);
  }

  void operator()(const Item& item) {
    const int64_t rows = (item.end - item.begin) * group;
    for (int64_t row = 0; row < rows; ++row) {
      read_query(item, row);
      room.softmax[row] = call.sinks ? Softmax{call.sinks[head_of(item, row)], {1}} : Softmax();
    }
    std::fill_n(room.mixed.begin(), rows * value_floats, 0.f);
    const int8_t* keys = slot_of<int8_t>(call, call.keys, item);
    const int8_t* values = slot_of<int8_t>(call, call.values, item);
    const int64_t high = *std::max_element(call.ends + item.begin, call.ends + item.end);
    for (int64_t base = first_key(call, item, true); base < high; base += KEYS)
      attend(item, rows, base, std::min(KEYS, high - base), keys + base * key_step, values + base * value_step);
    for (int64_t row = 0; row < rows; ++row) write(item, row);
  }

 private:
  int64_t token_of(const Item& item, int64_t row) const { return item.begin + row / group; }
  int64_t head_of(const Item& item, int64_t row) const { return item.head * group + row % group; }

  // What is not finite makes its scale so, and shows in all that is multiplied with it.
  void read_query(const Item& item, int64_t row) {
    const at::Tensor& from = call.queries;
    const float* numbers = from.const_data_ptr<float>() + token_of(item, row) * from.stride(0) +
        head_of(item, row) * from.stride(1);
    const float most = largest_magnitude(numbers, call.key_size());
    const __m512 by = _mm512_set1_ps(most > 0 ? UPPER / most : 0);
    auto* upper = reinterpret_cast<int8_t*>(room.queries.data() + row * PARTS * fours);
    Ints sum = all(0);
    for (int64_t i = 0; i < lines * LINE; i += LANES) {
      const Ints codes = _mm512_cvtps_epi32(_mm512_mul_ps(some(numbers + i, call.key_size() - i), by));
      const Ints high = _mm512_srai_epi32(_mm512_add_epi32(codes, all(64)), 7);
      store_codes(high, upper + i);
      store_codes(_mm512_sub_epi32(codes, _mm512_slli_epi32(high, 7)), upper + lines * LINE + i);
      sum = _mm512_add_epi32(sum, codes);
    }
    room.starts[row] = -static_cast<int32_t>(ZERO) * _mm512_reduce_add_epi32(sum);
    room.query_scales[row] = most / UPPER * call.scale;
  }

  static __m512 some(const float* numbers, int64_t count) {
    const int64_t bits = std::clamp<int64_t>(count, 0, LANES);
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1 << bits) - 1), numbers);
  }

  // As whole numbers floats have the same order, and what is not finite comes last.
  static float largest_magnitude(const float* numbers, int64_t count) {
    Ints most = all(0);
    for (int64_t i = 0; i < count; i += LANES) {
      const Ints bits = _mm512_castps_si512(some(numbers + i, count - i));
      most = _mm512_max_epi32(most, _mm512_and_epi32(bits, all(std::numeric_limits<int32_t>::max())));
    }
    const float found = std::bit_cast<float>(_mm512_reduce_max_epi32(most));
    return std::isfinite(found) ? found : std::numeric_limits<float>::quiet_NaN();
  }

  void attend(const Item& item, int64_t rows, int64_t base, int64_t n, const int8_t* keys, const int8_t* values) {
    read_scales(keys, values, n);
    for (int64_t start = 0; start < n; start += WIDE * LANES) {
      for (int c = 0; c < WIDE && start + c * LANES < n; ++c)
        turn(keys + (start + c * LANES) * key_step, std::min(LANES, n - start - c * LANES), c);
      tiles<FEWER>(rows, [&](int64_t row, auto count) { score<count()>(row, start); });
    }
    if (call.softcap != 0) cap_scores(call, room.scores.data(), rows, n);
    for (int64_t row = 0; row < rows; ++row) weigh(row, token_of(item, row), base, n);
    if (rows > FEW) lay_values(values, n);
    for (int64_t line = 0; line < value_lines; ++line)
      tiles<MIXED>(rows, [&](int64_t row, auto count) {
        const auto laid = [&](int64_t key, Codes(&to)[4]) {
          const Codes* from = room.values.data() + line * KEYS + key;
          for (int i = 0; i < 4; ++i) to[i] = from[i];
        };
        const auto in_place = [&](int64_t key, Codes(&to)[4]) { read_values(values, line, key, n, to); };
        if (rows > FEW) mix<count()>(row, line, n, laid);
        else mix<count()>(row, line, n, in_place);
      });
  }

  void read_scales(const int8_t* keys, const int8_t* values, int64_t n) {
    room.key_scales.assign(KEYS, 0), room.value_scales.assign(KEYS, 0);
    for (int64_t key = 0; key < n; ++key) {
      fetch(keys + (key + AHEAD) * key_step, call.keys.size(3));
      fetch(values + (key + AHEAD) * value_step, call.values.size(3));
      room.key_scales[key] = scale_of(keys + key * key_step, call.key_size());
      room.value_scales[key] = scale_of(values + key * value_step, call.value_size);
    }
  }

  void turn(const int8_t* keys, int64_t count, int c) {
    for (int64_t line = 0; line < lines; ++line) {
      const __mmask64 some = first_of(call.key_size() - line * LINE);
      Codes rows[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i)
        rows[i] = i < count ? _mm512_maskz_loadu_epi8(some, keys + i * key_step + line * LINE) : all(0);
      turn_lines(rows, room.columns.data() + (c * fours + line * FOURS) * LANES);
    }
  }

  template <int COUNT>
  void score(int64_t row, int64_t start) {
    const int32_t* queries = room.queries.data() + row * PARTS * fours;
    Ints sums[COUNT][PARTS][WIDE];
#pragma GCC unroll 4
    for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < WIDE; ++c) sums[r][0][c] = all(0), sums[r][1][c] = all(room.starts[row + r]);
    for (int64_t i = 0; i < fours; ++i) {
      Codes column[WIDE];
#pragma GCC unroll 4
      for (int c = 0; c < WIDE; ++c) column[c] = _mm512_loadu_si512(room.columns.data() + (c * fours + i) * LANES);
#pragma GCC unroll 4
      for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 2
        for (int p = 0; p < PARTS; ++p) {
          const int32_t* query = queries + (r * PARTS + p) * fours + i;
#pragma GCC unroll 4
          for (int c = 0; c < WIDE; ++c) add_products(sums[r][p][c], column[c], query);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < WIDE; ++c) {
        const Ints sum = _mm512_add_epi32(_mm512_slli_epi32(sums[r][0][c], 7), sums[r][1][c]);
        const __m512 by = _mm512_loadu_ps(room.key_scales.data() + start + c * LANES);
        const __m512 scale = _mm512_mul_ps(by, _mm512_set1_ps(room.query_scales[row + r]));
        _mm512_storeu_ps(room.scores.data() + (row + r) * KEYS + start + c * LANES,
                         _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale));
      }
  }

  // Scores to weights, times the scales of values, in 16 bits.
  void weigh(int64_t row, int64_t token, int64_t base, int64_t n) {
    const int64_t from = std::clamp<int64_t>(call.begins[token] - base, 0, n);
    const int64_t to = std::clamp<int64_t>(call.ends[token] - base, from, n);
    float* scores = room.scores.data() + row * KEYS;
    Floats largest_weight(0.f);
    const float fade = room.softmax[row].add(scores, from, to, n, [&](int64_t key, Floats low, Floats high) {
      low = scaled(low, key), high = scaled(high, key + LANES);
      low.store(scores + key), high.store(scores + key + LANES);
      largest_weight = larger_of(largest_weight, larger_of(low, high));
    });
    const float most = largest(largest_weight);
    const __m512 by = _mm512_set1_ps(most > 0 ? LARGEST / most : 0);
    auto* upper = reinterpret_cast<int8_t*>(room.weights.data() + row * PARTS * KEYS / 4);
    for (int64_t key = 0; key < n; key += LANES) {
      const Ints codes = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(scores + key), by));
      store_codes(_mm512_srli_epi32(codes, 8), upper + key), store_codes(codes, upper + KEYS + key);
    }
    room.weight_scales[row] = most / LARGEST;
    if (fade == 1) return;
    float* mixed = room.mixed.data() + row * value_floats;
    for (int64_t i = 0; i < value_floats; i += LANES) (Floats::loadu(mixed + i) * Floats(fade)).store(mixed + i);
  }

  // A weight of 0 stays one, whatever it would be multiplied with.
  Floats scaled(Floats weights, int64_t key) const {
    const __mmask16 some = _mm512_cmp_ps_mask(weights, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    return Floats(_mm512_maskz_mul_ps(some, weights, _mm512_loadu_ps(room.value_scales.data() + key)));
  }

  static void store_codes(Ints codes, int8_t* to) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(codes)); // their lower bytes
  }

  void read_values(const int8_t* values, int64_t line, int64_t key, int64_t n, Codes (&to)[4]) const {
    const __mmask64 some = first_of(call.value_size - line * LINE);
    const int8_t* from = values + key * value_step + line * LINE;
    Codes rows[4];
    if (key + 4 <= n)
      for (int i = 0; i < 4; ++i) rows[i] = _mm512_maskz_loadu_epi8(some, from + i * value_step);
    else
      for (int i = 0; i < 4; ++i) rows[i] = key + i < n ? _mm512_maskz_loadu_epi8(some, from + i * value_step) : all(0);
    lay_fours(rows, to);
  }

  // Once for many rows.
  void lay_values(const int8_t* values, int64_t n) {
    for (int64_t line = 0; line < value_lines; ++line)
      for (int64_t key = 0; key < n; key += 4) {
        Codes laid[4];
        read_values(values, line, key, n, laid);
        for (int i = 0; i < 4; ++i) room.values[line * KEYS + key + i] = laid[i];
      }
  }

  // mixed[row] += weights[row] * values, of one line of each value.
  template <int COUNT, typename Values>
  void mix(int64_t row, int64_t line, int64_t n, const Values& values) {
    const int32_t* weights = room.weights.data() + row * PARTS * KEYS / 4;
    Ints sums[COUNT][PARTS][4];
#pragma GCC unroll 4
    for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sums[r][0][i] = sums[r][1][i] = all(0);
    for (int64_t key = 0; key < n; key += 4) {
      Codes four[4];
      values(key, four);
#pragma GCC unroll 4
      for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 2
        for (int p = 0; p < PARTS; ++p) {
          const Codes weight = all(weights[((r * PARTS + p) * KEYS + key) / 4]);
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) add_products(sums[r][p][i], weight, four[i]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        float* at = room.mixed.data() + (row + r) * value_floats + line * LINE + i * LANES;
        const Ints sum = _mm512_add_epi32(_mm512_slli_epi32(sums[r][0][i], 8), sums[r][1][i]);
        const __m512 by = _mm512_set1_ps(room.weight_scales[row + r]);
        _mm512_storeu_ps(at, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), by, _mm512_loadu_ps(at)));
      }
  }

  void write(const Item& item, int64_t row) {
    const int64_t place = token_of(item, row) * out.stride(0) + head_of(item, row) * out.stride(1);
    float* to = out.mutable_data_ptr<float>() + place;
    float* from = room.mixed.data() + row * value_floats;
    const float by = 1 / room.softmax[row].sum();
    for (int64_t line = 0; line < value_lines; ++line) restore_order(from + line * LINE);
    for (int64_t i = 0; i < call.value_size; ++i) to[i] = from[i] * by;
  }
};

// Queries and `out` are in float32. Says whether this processor has instructions for it.
bool attend_int8(const Call& call, at::Tensor& out) {
  for_each_item(call, [&] { return Int8Worker(call, out); });
  return true;
}

} // namespace

#else

namespace {

bool attend_int8(const Call&, at::Tensor&) { return false; }

} // namespace

#endif
