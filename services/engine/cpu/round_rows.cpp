// Rows of keys and values in 8 bits, as the cache keeps them: the codes, then what each is to be multiplied with.
#include "vectors.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

namespace {

constexpr float LARGEST = 127;
constexpr int64_t GRAIN = 32768; // numbers that are worth a thread

// `numbers`, which are padded with zeros. What is not finite makes the scale so: it shows wherever the row is used.
void round_numbers(float* numbers, int64_t size, int8_t* to) {
  Floats most(0.f);
  for (int64_t i = 0; i < size; i += WIDTH) most = at::vec::maximum(most, Floats::loadu(numbers + i).abs());
  const float largest = at::vec::vec_reduce_all<float>([](Floats a, Floats b) { return at::vec::maximum(a, b); }, most);
  const bool finite = largest <= std::numeric_limits<float>::max(); // not of NaN either
  const float scale = finite ? largest / LARGEST : std::numeric_limits<float>::quiet_NaN();
  const Floats by(finite && largest > 0 ? LARGEST / largest : 0);
  for (int64_t i = 0; i < size; i += WIDTH) (Floats::loadu(numbers + i) * by).round().store(numbers + i);
  for (int64_t i = 0; i < size; ++i) to[i] = finite ? static_cast<int8_t>(static_cast<int32_t>(numbers[i])) : 0;
  std::memcpy(to + size, &scale, sizeof scale);
}

template <typename T>
void run(const at::Tensor& rows, at::Tensor& out) {
  const int64_t size = rows.size(2), heads = rows.size(1);
  at::parallel_for(0, rows.size(0) * heads, std::max<int64_t>(1, GRAIN / size), [&](int64_t begin, int64_t end) {
    std::vector<float> numbers(size + PAIR);
    for (int64_t i = begin; i < end; ++i) {
      const T* from = rows.const_data_ptr<T>() + i / heads * rows.stride(0) + i % heads * rows.stride(1);
      for (int64_t at = 0; at < size; at += PAIR) {
        const auto [low, high] = load(from + at, size - at);
        low.store(numbers.data() + at), high.store(numbers.data() + at + WIDTH);
      }
      round_numbers(numbers.data(), size, out.mutable_data_ptr<int8_t>() + i * out.size(2));
    }
  });
}

// [tokens, heads, size] -> [tokens, heads, size and the scale's bytes]
at::Tensor round_rows(const at::Tensor& rows) {
  const at::Tensor from = rows.stride(-1) == 1 ? rows : rows.contiguous();
  const int64_t width = rows.size(2) + static_cast<int64_t>(sizeof(float));
  at::Tensor out = at::empty({rows.size(0), rows.size(1), width}, rows.options().dtype(at::kChar));
  switch (rows.scalar_type()) {
    case at::kFloat: run<float>(from, out); break;
    case at::kBFloat16: run<at::BFloat16>(from, out); break;
    case at::kHalf: run<at::Half>(from, out); break;
    default: TORCH_CHECK(false, "no rows of 8 bits from ", rows.scalar_type());
  }
  return out;
}

} // namespace

TORCH_LIBRARY_FRAGMENT(parley, library) {
  library.def("round_rows(Tensor rows) -> Tensor");
  library.impl("round_rows", c10::DispatchKey::CPU, round_rows);
}
