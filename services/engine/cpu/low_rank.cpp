// What LoRA adapters add to a layer's outputs, for rows of several adapters and of none in one call.
//
// Each token has an adapter of its own, so this is no product of matrices: the tokens of one adapter are taken together,
// and its weights are read once for all of them. Sums are in float32 and each in one order, so that no bit of a row
// depends on its company.
//
// A compiled step is given tensors whose number never changes. Which adapters there are and who has which therefore
// stands beside the thread (`use_adapters`), and the call says only which layer it is behind.
#include "vectors.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <map>
#include <vector>

namespace {

constexpr int TOGETHER = 4;       // tokens whose sums fit into registers
constexpr int64_t GRAIN = 32768;  // products that are worth a thread
constexpr int64_t SPAN = 4 * PAIR; // outputs of a piece of work

struct Adapters {
  at::Tensor weights;              // [numbers]: of each adapter, of each of its layers: down [rank, inputs], up [rank, outputs]
  at::Tensor table;                // [adapters, sites, 2]: where a layer's numbers begin, and its rank; 0: it has none
  std::vector<int64_t> tokens;     // rows of the table; -1: the model as it is
  std::vector<int64_t> logits;     // those of the tokens that the language head is given
};

thread_local Adapters current;

std::vector<int64_t> numbers(const at::Tensor& tensor) {
  const auto from = tensor.contiguous();
  const int64_t* first = from.const_data_ptr<int64_t>();
  return {first, first + from.numel()};
}

void use_adapters(const at::Tensor& weights, const at::Tensor& table, const at::Tensor& tokens, const at::Tensor& logits) {
  current = {weights, table.contiguous(), numbers(tokens), numbers(logits)};
}

// One adapter's part in a layer, and the tokens that have it.
struct Part {
  int64_t start, rank; // of its weights
  std::vector<int64_t> tokens;
  int64_t sums = 0; // where its tokens' begin, [tokens, rank]
};

std::vector<Part> parts_of(const std::vector<int64_t>& rows, int64_t site) {
  const int64_t* table = current.table.const_data_ptr<int64_t>();
  std::map<int64_t, Part> found;
  for (size_t token = 0; token < rows.size(); ++token) {
    if (rows[token] < 0) continue;
    const int64_t* entry = table + (rows[token] * current.table.size(1) + site) * 2;
    if (entry[1] == 0) continue;
    auto& part = found.try_emplace(rows[token], Part{entry[0], entry[1], {}}).first->second;
    part.tokens.push_back(static_cast<int64_t>(token));
  }
  std::vector<Part> parts;
  int64_t sums = 0;
  for (auto& [row, part] : found) {
    part.sums = sums;
    sums += part.rank * static_cast<int64_t>(part.tokens.size());
    parts.push_back(std::move(part));
  }
  return parts;
}

// Calls `work(part, index, first token, count)` for pieces of `per_part(part)` of each part, TOGETHER tokens at a time.
template <typename PerPart, typename Work>
void for_pieces(const std::vector<Part>& parts, int64_t products, PerPart per_part, Work work) {
  std::vector<std::pair<const Part*, int64_t>> pieces;
  for (const auto& part : parts)
    for (int64_t index = 0; index < per_part(part); ++index) pieces.emplace_back(&part, index);
  const int64_t grain = std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, products / static_cast<int64_t>(pieces.size())));
  at::parallel_for(0, static_cast<int64_t>(pieces.size()), grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto [part, index] = pieces[i];
      const auto count = static_cast<int64_t>(part->tokens.size());
      int64_t first = 0;
      for (; first + TOGETHER <= count; first += TOGETHER) work.template operator()<TOGETHER>(*part, index, first);
      for (; first < count; ++first) work.template operator()<1>(*part, index, first);
    }
  });
}

// sums[token][r] = inputs[token] . down[r]; `inputs` [tokens, padded] with zeros behind each row's end.
template <typename Weight>
void go_down(const std::vector<Part>& parts, int64_t products, const float* inputs, int64_t size, int64_t padded, float* sums) {
  const auto* weights = current.weights.const_data_ptr<Weight>();
  const auto work = [&]<int COUNT>(const Part& part, int64_t r, int64_t first) {
    const Weight* row = weights + part.start + r * size;
    Floats low[COUNT], high[COUNT];
    const float* from[COUNT];
    for (int t = 0; t < COUNT; ++t) {
      low[t] = high[t] = Floats(0.f);
      from[t] = inputs + part.tokens[first + t] * padded;
    }
    for (int64_t i = 0; i < size; i += PAIR) {
      const auto [a, b] = load(row + i, size - i);
      for (int t = 0; t < COUNT; ++t) {
        low[t] = at::vec::fmadd(Floats::loadu(from[t] + i), a, low[t]);
        high[t] = at::vec::fmadd(Floats::loadu(from[t] + i + WIDTH), b, high[t]);
      }
    }
    for (int t = 0; t < COUNT; ++t)
      sums[part.sums + (first + t) * part.rank + r] =
          at::vec::vec_reduce_all<float>([](Floats& x, Floats& y) { return x + y; }, low[t] + high[t]);
  };
  for_pieces(parts, products, [](const Part& part) { return part.rank; }, work);
}

// out[token] += sums[token] . up
template <typename Weight, typename Out>
void go_up(const std::vector<Part>& parts, int64_t products, const float* sums, int64_t inputs, int64_t size, Out* out) {
  const auto* weights = current.weights.const_data_ptr<Weight>();
  const auto work = [&]<int COUNT>(const Part& part, int64_t span, int64_t first) {
    const Weight* up = weights + part.start + part.rank * inputs;
    for (int64_t o = span * SPAN; o < std::min(size, (span + 1) * SPAN); o += PAIR) {
      Floats low[COUNT], high[COUNT];
      for (int t = 0; t < COUNT; ++t) std::tie(low[t], high[t]) = load(out + part.tokens[first + t] * size + o, size - o);
      for (int64_t r = 0; r < part.rank; ++r) {
        const auto [a, b] = load(up + r * size + o, size - o);
        for (int t = 0; t < COUNT; ++t) {
          const Floats sum(sums[part.sums + (first + t) * part.rank + r]);
          low[t] = at::vec::fmadd(sum, a, low[t]);
          high[t] = at::vec::fmadd(sum, b, high[t]);
        }
      }
      for (int t = 0; t < COUNT; ++t) store(low[t], high[t], out + part.tokens[first + t] * size + o, size - o);
    }
  };
  for_pieces(parts, products, [&](const Part&) { return (size + SPAN - 1) / SPAN; }, work);
}

// The rows of `from` [tokens, size] that some part has, with zeros behind their ends.
template <typename In>
void widen(const std::vector<Part>& parts, const In* from, int64_t size, int64_t padded, float* to) {
  for (const auto& part : parts)
    for (const int64_t token : part.tokens)
      for (int64_t i = 0; i < padded; i += PAIR) {
        const auto [low, high] = load(from + token * size + i, size - i);
        low.store(to + token * padded + i);
        high.store(to + token * padded + i + WIDTH);
      }
}

template <typename Work>
auto with_type(const at::Tensor& tensor, Work work) {
  if (tensor.scalar_type() == at::kBFloat16) return work(at::BFloat16());
  TORCH_CHECK(tensor.scalar_type() == at::kFloat, "adapters are for float32 and bfloat16");
  return work(float());
}

// `out` [..., outputs] with what the adapter of each token makes of `inputs` [..., inputs].
at::Tensor add_low_rank(const at::Tensor& out, const at::Tensor& inputs, int64_t site, bool is_head) {
  auto result = out.clone(at::MemoryFormat::Contiguous);
  const auto& rows = is_head ? current.logits : current.tokens;
  if (rows.empty()) return result;
  const int64_t size = inputs.size(-1), outputs = out.size(-1), count = inputs.numel() / size;
  TORCH_CHECK(count == static_cast<int64_t>(rows.size()), "a layer is given ", count, " of ", rows.size(), " tokens");
  const auto parts = parts_of(rows, site);
  if (parts.empty()) return result;
  const int64_t padded = (size + PAIR - 1) / PAIR * PAIR, num_sums = parts.back().sums + parts.back().rank * static_cast<int64_t>(parts.back().tokens.size());
  std::vector<float> widened(count * padded), sums(num_sums);
  const auto from = inputs.contiguous();
  with_type(from, [&](auto of) { widen(parts, from.const_data_ptr<decltype(of)>(), size, padded, widened.data()); });
  with_type(current.weights, [&](auto weight) {
    go_down<decltype(weight)>(parts, num_sums * size, widened.data(), size, padded, sums.data());
    with_type(result, [&](auto of) {
      go_up<decltype(weight)>(parts, num_sums * outputs, sums.data(), size, outputs, result.data_ptr<decltype(of)>());
    });
  });
  return result;
}

} // namespace

TORCH_LIBRARY_FRAGMENT(parley, library) {
  library.def("use_adapters(Tensor weights, Tensor table, Tensor tokens, Tensor logits) -> ()");
  library.def("add_low_rank(Tensor out, Tensor inputs, int site, bool is_head) -> Tensor");
}

TORCH_LIBRARY_IMPL(parley, CPU, library) {
  library.impl("use_adapters", &use_adapters);
  library.impl("add_low_rank", &add_low_rank);
}
