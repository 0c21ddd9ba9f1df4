// One translation unit of these bindings: nearly all the time that each would take alone goes into torch's headers.
#include "binding_attention.cpp"
#include "binding_cached_attention.cpp"
#include "binding_cross_attention.cpp"
#include "binding_growing.cpp"
#include "binding_unpad.cpp"
