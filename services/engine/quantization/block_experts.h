// Products with the weights of a mixture's experts: of each token with those of the experts that it was given. Rows are
// sorted by their experts, and the rows of one are multiplied together, so that its weights are read once a step.
// Part of block_linear.cpp, whose kernels compute each row by itself: no bit depends on which others there are.
#pragma once

#include <ATen/ops/zeros.h>

#include <atomic>

namespace {

// Pairs of a token and one of its experts, those of an expert one after another. What is given an expert beyond the last
// has none.
struct Sorted {
  std::vector<int64_t> pairs, tokens; // by row
  std::vector<int64_t> ends;          // of the rows of each expert

  Sorted(const at::Tensor& ids, int64_t experts) : ends(experts) {
    const int64_t* expert = ids.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < ids.numel(); ++i) {
      TORCH_CHECK_INDEX(expert[i] >= 0, "there is no expert ", expert[i]);
      if (expert[i] < experts) ++ends[expert[i]];
    }
    std::vector<int64_t> next(experts);
    for (int64_t i = 1; i < experts; ++i) next[i] = ends[i - 1], ends[i] += ends[i - 1];
    pairs.resize(ends.back()), tokens.resize(ends.back());
    for (int64_t i = 0; i < ids.numel(); ++i)
      if (expert[i] < experts) {
        const int64_t row = next[expert[i]]++;
        pairs[row] = i, tokens[row] = i / ids.size(1);
      }
  }

  Rows rows(int64_t expert) const { return {expert ? ends[expert - 1] : 0, ends[expert]}; }
};

// Weights [experts, one layer's] and biases.
struct Experts {
  Layer first;
  int64_t count, codes, scales; // of bytes and numbers that each has

  Layer at(int64_t expert) const {
    Layer layer = first;
    layer.weights.codes += expert * codes, layer.weights.scales += expert * scales;
    if (layer.bias) layer.bias += expert * layer.weights.outputs;
    return layer;
  }
};

template <typename In, typename Out>
void expert_products(const Multiply& multiply, const In* inputs, int64_t size, const Sorted& sorted,
                     const Experts& experts, Out* out) {
  static thread_local Rounded rounded;
  Rounded& in = rounded;
  const Packed& weights = experts.first.weights;
  in.take(inputs, static_cast<int64_t>(sorted.tokens.size()), size, weights.format,
          static_cast<int32_t>(weights.format.zero) - multiply.zero, sorted.tokens.data());
  std::vector<int64_t> used;
  for (int64_t i = 0; i < experts.count; ++i)
    if (sorted.rows(i).count()) used.push_back(i);
  const int64_t wide = (weights.panels() + PANELS - 1) / PANELS, total = wide * static_cast<int64_t>(used.size());
  std::atomic<int64_t> next{0}; // some experts have many more rows than others: threads take what is left
  at::parallel_for(0, std::min<int64_t>(at::get_num_threads(), total), 1, [&](int64_t, int64_t) {
    static thread_local std::vector<float> sums;
    for (int64_t i = next++; i < total; i = next++) {
      const int64_t expert = used[i / wide];
      panel_product(multiply, in, sorted.rows(expert), experts.at(expert), i % wide * PANELS, sums, out,
                    sorted.pairs.data());
    }
  });
}

// inputs [tokens, size], ids [tokens, each one's experts] -> [tokens, each one's experts, outputs]
at::Tensor quantized_experts(const at::Tensor& inputs, const at::Tensor& ids, const at::Tensor& codes,
                             const at::Tensor& scales, const std::optional<at::Tensor>& bias, int64_t outputs, int64_t bits,
                             int64_t group, bool minima, int64_t zero, double factor, std::optional<at::ScalarType> dtype,
                             const std::string& instructions) {
  TORCH_CHECK(inputs.dim() == 2 && ids.dim() == 2 && ids.size(0) == inputs.size(0), "some experts for each token");
  const at::Tensor rows = inputs.contiguous();
  const int64_t size = inputs.size(1);
  const Format format{bits, group, minima, zero};
  TORCH_CHECK(codes.is_contiguous() && scales.is_contiguous() && codes.size(0) == scales.size(0), "weights in one line");
  TORCH_CHECK(!bias || (bias->is_contiguous() && bias->numel() == codes.size(0) * outputs), "a bias for each output");
  const Layer first{packed_of(codes.select(0, 0), scales.select(0, 0), outputs, size, format),
                    bias ? bias->const_data_ptr<float>() : nullptr, static_cast<float>(factor)};
  const Experts experts{first, codes.size(0), codes.size(1), scales.size(1)};
  const Sorted sorted(ids.contiguous(), experts.count);
  const auto options = inputs.options().dtype(dtype.value_or(inputs.scalar_type()));
  const bool is_all = static_cast<int64_t>(sorted.pairs.size()) == ids.numel();
  const std::vector<int64_t> shape{ids.size(0), ids.size(1), outputs};
  at::Tensor out = is_all ? at::empty(shape, options) : at::zeros(shape, options);
  if (sorted.pairs.empty()) return out;
  const Multiply multiply = multiply_of(format, instructions);
  with_numbers(inputs.scalar_type(), [&](auto number) {
    using In = decltype(number);
    const In* from = rows.const_data_ptr<In>();
    if (out.scalar_type() == inputs.scalar_type())
      return expert_products(multiply, from, size, sorted, experts, out.mutable_data_ptr<In>());
    TORCH_CHECK(out.scalar_type() == at::kFloat, "products in other numbers than inputs are in float32");
    expert_products(multiply, from, size, sorted, experts, out.mutable_data_ptr<float>());
  });
  return out;
}

template <typename T>
void add_weighted(const float* outputs, const float* weights, int64_t choices, int64_t size, T* out) {
  for (int64_t i = 0; i < size; i += PAIR) {
    Floats low(0.f), high(0.f);
    for (int64_t choice = 0; choice < choices; ++choice) {
      const auto [one, other] = load(outputs + choice * size + i, size - i);
      const Floats by(weights[choice]);
      low = at::vec::fmadd(one, by, low), high = at::vec::fmadd(other, by, high);
    }
    store(low, high, out + i, size - i);
  }
}

// outputs [tokens, choices, size] in float32, each times its weight [tokens, choices], added up in their order
at::Tensor combine_experts(const at::Tensor& outputs, const at::Tensor& weights, at::ScalarType dtype) {
  TORCH_CHECK(outputs.dim() == 3 && outputs.scalar_type() == at::kFloat && outputs.is_contiguous(), "outputs in float32");
  TORCH_CHECK(weights.numel() == outputs.size(0) * outputs.size(1), "a weight for each output");
  const at::Tensor by = weights.to(at::kFloat).contiguous();
  const int64_t tokens = outputs.size(0), choices = outputs.size(1), size = outputs.size(2);
  at::Tensor out = at::empty({tokens, size}, outputs.options().dtype(dtype));
  const float *from = outputs.const_data_ptr<float>(), *weight = by.const_data_ptr<float>();
  with_numbers(dtype, [&](auto number) {
    using T = decltype(number);
    T* to = out.mutable_data_ptr<T>();
    at::parallel_for(0, tokens, std::max<int64_t>(1, ENOUGH / (choices * size)), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        add_weighted(from + i * choices * size, weight + i * choices, choices, size, to + i * size);
    });
  });
  return out;
}

} // namespace
