"""The CPU side: attention, C++ kernels, merged linear layers, compiled steps and threads."""
