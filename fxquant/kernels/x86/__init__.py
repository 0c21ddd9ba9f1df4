"""Kernels for x86 CPUs: micro-kernels of the C++ core, and the integer GEMMs that ship with torch (oneDNN)."""
