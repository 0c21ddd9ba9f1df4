"""Kernels for x86 CPUs on the integer GEMMs that ship with torch (oneDNN); same meaning as the reference."""
