// Numbers of any width, in memory, as float32 in registers.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <tuple>
#include <type_traits>

namespace {

using Floats = at::vec::Vectorized<float>;

constexpr int64_t WIDTH = Floats::size();
constexpr int64_t PAIR = 2 * WIDTH; // what one register of half as wide numbers holds

template <typename T>
inline std::tuple<Floats, Floats> load(const T* from, int64_t count) {
  if constexpr (std::is_same_v<T, float>) {
    const auto part = [&](int64_t start) {
      const int64_t left = std::clamp<int64_t>(count - start, 0, WIDTH);
      return left == WIDTH ? Floats::loadu(from + start) : left ? Floats::loadu(from + start, left) : Floats(0.f);
    };
    return {part(0), part(WIDTH)};
  } else if constexpr (std::is_same_v<T, int8_t>) {
    float numbers[PAIR] = {};
    if (count >= PAIR) for (int64_t i = 0; i < PAIR; ++i) numbers[i] = from[i];
    else for (int64_t i = 0; i < count; ++i) numbers[i] = from[i];
    return {Floats::loadu(numbers), Floats::loadu(numbers + WIDTH)};
  } else {
    using Halves = at::vec::Vectorized<T>;
    if (count <= 0) return {Floats(0.f), Floats(0.f)};
    return at::vec::convert_to_float<T>(count >= PAIR ? Halves::loadu(from) : Halves::loadu(from, count));
  }
}

template <typename T>
inline void store(Floats low, Floats high, T* to, int64_t count) {
  if constexpr (std::is_same_v<T, float>) {
    low.store(to, std::min(count, WIDTH));
    if (count > WIDTH) high.store(to + WIDTH, std::min(count - WIDTH, WIDTH));
  } else {
    at::vec::convert_from_float<T>(low, high).store(to, std::min(count, PAIR));
  }
}

} // namespace
