"""Kernels for ARM CPUs: micro-kernels of the C++ core, and the qnnpack engine that ships with torch."""
