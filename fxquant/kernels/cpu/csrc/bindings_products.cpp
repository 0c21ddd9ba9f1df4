// One translation unit of these bindings, beside the other (bindings_attention.cpp): two are compiled at the same time.
#include "binding_conv.cpp"
#include "binding_linear.cpp"
#include "binding_plan.cpp"
#include "binding_row_program.cpp"
#include "binding_weight_only.cpp"
