// What torch compiled ahead of time, called without Python's lock: torch's own binding keeps it for the whole step, and
// no other thread of the server would get a word in.
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <string>
#include <unordered_map>
#include <vector>

namespace {

using Tensors = std::vector<at::Tensor>;

struct Package : torch::CustomClassHolder {
  explicit Package(const std::string& path) : loader(path, "model", /*run_single_threaded=*/true) {}

  std::vector<std::string> names() { return loader.get_constant_fqns(); }

  // What was written into the package when it was made; empty where nothing was.
  std::string metadata(const std::string& key) {
    const auto all = loader.get_metadata();
    const auto found = all.find(key);
    return found == all.end() ? "" : found->second;
  }

  // The tensors stay the caller's.
  void give(const std::vector<std::string>& names, const Tensors& tensors) {
    TORCH_CHECK(names.size() == tensors.size(), "a tensor for each name");
    std::unordered_map<std::string, at::Tensor> constants;
    for (size_t i = 0; i < names.size(); ++i) constants[names[i]] = tensors[i];
    loader.load_constants(constants, /*use_inactive=*/false, /*check_full_update=*/true, /*user_managed=*/true);
  }

  Tensors run(const Tensors& inputs) { return loader.run(inputs); }

  torch::inductor::AOTIModelPackageLoader loader;
};

} // namespace

TORCH_LIBRARY_FRAGMENT(parley, library) {
  using Self = c10::intrusive_ptr<Package>;
  library.class_<Package>("Package")
      .def(torch::init<std::string>())
      .def("names", [](const Self& self) { return self->names(); })
      .def("metadata", [](const Self& self, const std::string& key) { return self->metadata(key); })
      .def("give", [](const Self& self, std::vector<std::string> names, Tensors tensors) { self->give(names, tensors); })
      .def("run", [](const Self& self, Tensors inputs) { return self->run(inputs); });
}
