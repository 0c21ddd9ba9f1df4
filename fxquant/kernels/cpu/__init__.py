"""Our own C++ kernels for CPUs: one core and its ops, with micro-kernels for each kind of processor beside it."""
