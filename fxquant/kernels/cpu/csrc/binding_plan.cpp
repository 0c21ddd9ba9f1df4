// torch.classes.fxquant.Plan: the calls of a graph in order, with no Python between them (kernels/cpu/plan.py makes them).
#include <ATen/ScalarOps.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/custom_class.h>

#include <memory>
#include <string>
#include <vector>

namespace fxq::plan_binding {

using c10::IValue;
using at::Tensor;

// A value as an operator of this type takes it: Python writes 1 for 1.0, and for a tensor of no axes.
IValue typed(const IValue& value, const c10::TypePtr& type) {
  if (value.isNone() || value.isTensor()) return value;
  if (const auto optional = type->cast<c10::OptionalType>()) return typed(value, optional->getElementType());
  if (type->kind() == c10::TypeKind::FloatType && value.isInt()) return static_cast<double>(value.toInt());
  if (type->kind() == c10::TypeKind::TensorType && value.isScalar()) return at::native::wrapped_scalar_tensor(value.toScalar());
  return value;
}

// An argument: a value that is known, one that the plan computes, or a list of such.
struct Argument {
  IValue known;
  int64_t slot = -1;
  std::vector<Argument> items;
  c10::TypePtr type;  // of the slot's value, or of the items

  IValue read(const std::vector<IValue>& slots) const {
    if (slot >= 0) return typed(slots[slot], type);
    if (!type) return known;
    c10::impl::GenericList list(type);
    list.reserve(items.size());
    for (const Argument& item : items) list.push_back(item.read(slots));
    return list;
  }
};

// What a step does: call an operator, or one of Python's on whole numbers, or take one of several results.
enum class Kind { call, item, add, subtract, multiply, divide };

struct Step {
  Kind kind;
  std::optional<c10::OperatorHandle> op;
  std::vector<Argument> arguments;
  std::vector<int64_t> last;  // slots that no later step reads
};

c10::TypePtr item_type_of(const c10::TypePtr& type) {
  if (const auto optional = type->cast<c10::OptionalType>()) return item_type_of(optional->getElementType());
  const auto list = type->cast<c10::ListType>();
  TORCH_CHECK(list, "fxquant::Plan: a list stands for ", type->str());
  const c10::TypePtr item = list->getElementType();
  return item->kind() == c10::TypeKind::SymIntType ? c10::TypePtr(c10::IntType::get()) : item;
}

// Arguments come as (0, constant), (1, slot) or (2, (argument, …)).
Argument argument_of(const IValue& given, const c10::TypePtr& type) {
  const auto& parts = given.toTupleRef().elements();
  Argument argument;
  const int64_t kind = parts[0].toInt();
  if (kind == 0) {
    argument.known = typed(parts[1], type);
  } else if (kind == 1) {
    argument.slot = parts[1].toInt();
    argument.type = type;
  } else {
    argument.type = item_type_of(type);
    bool constant = true;
    for (const IValue& item : parts[1].toTupleRef().elements()) {
      argument.items.push_back(argument_of(item, argument.type));
      constant &= argument.items.back().slot < 0;
    }
    // Operators may keep lists of tensors, but only read those of numbers: one serves all calls.
    if (constant) {
      argument.known = argument.read({});
      argument.type = nullptr;
    }
  }
  return argument;
}

int64_t floor_divide(int64_t a, int64_t b) {
  TORCH_CHECK(b != 0, "fxquant::Plan: division by zero");
  return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

struct Plan : torch::CustomClassHolder {
  // `calls` is ((operator, overload, (argument, …)), …); `results` the slots that are returned.
  Plan(int64_t inputs, const IValue& calls, std::vector<int64_t> results)
      : inputs_(inputs), results_(std::move(results)) {
    for (const IValue& call : calls.toTupleRef().elements()) steps_.push_back(step_of(call));
    find_last_uses();
  }

  // Hold the last inputs from now on.
  void bind(std::vector<Tensor> constants) {
    std::atomic_store(&constants_, std::make_shared<const std::vector<IValue>>(constants.begin(), constants.end()));
  }

  std::vector<Tensor> run(const std::vector<Tensor>& given) {
    const auto constants = std::atomic_load(&constants_);
    TORCH_CHECK(static_cast<int64_t>(given.size() + constants->size()) == inputs_, "fxquant::Plan: ", given.size(),
                " inputs and ", constants->size(), " constants, not ", inputs_);
    std::vector<IValue> slots(given.begin(), given.end());
    slots.insert(slots.end(), constants->begin(), constants->end());
    slots.resize(inputs_ + steps_.size());
    std::vector<IValue> stack;
    for (size_t i = 0; i < steps_.size(); ++i) {
      slots[inputs_ + i] = result_of(steps_[i], slots, stack);
      for (const int64_t slot : steps_[i].last) slots[slot] = IValue();
    }
    std::vector<Tensor> results;
    for (const int64_t slot : results_) results.push_back(slots[slot].toTensor());
    return results;
  }

 private:
  static Step step_of(const IValue& call) {
    const auto& parts = call.toTupleRef().elements();
    const auto& given = parts[2].toTupleRef().elements();
    const std::string name = parts[0].toStringRef();
    const std::vector<std::pair<const char*, Kind>> plain = {{"getitem", Kind::item},      {"add", Kind::add},
                                                             {"sub", Kind::subtract},      {"mul", Kind::multiply},
                                                             {"floordiv", Kind::divide}};
    Step step{Kind::call, std::nullopt, {}, {}};
    for (const auto& [word, kind] : plain) {
      if (name == word) step.kind = kind;
    }
    if (step.kind == Kind::call) {
      step.op = c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), parts[1].toStringRef().c_str());
      const auto& schema = step.op->schema().arguments();
      TORCH_CHECK(given.size() == schema.size(), "fxquant::Plan: ", name, " takes ", schema.size(), " arguments");
      for (size_t i = 0; i < given.size(); ++i) step.arguments.push_back(argument_of(given[i], schema[i].type()));
    } else {
      for (const IValue& each : given) step.arguments.push_back(argument_of(each, c10::AnyType::get()));
    }
    return step;
  }

  static void read_slots(const Argument& argument, std::vector<int64_t>& slots) {
    if (argument.slot >= 0) slots.push_back(argument.slot);
    for (const Argument& item : argument.items) read_slots(item, slots);
  }

  // Buffers are let go, and used again, as soon as nothing reads them.
  void find_last_uses() {
    std::vector<bool> later(inputs_ + steps_.size(), false);
    for (const int64_t slot : results_) later[slot] = true;
    for (size_t i = steps_.size(); i-- > 0;) {
      std::vector<int64_t> read{inputs_ + static_cast<int64_t>(i)};
      for (const Argument& argument : steps_[i].arguments) read_slots(argument, read);
      for (const int64_t slot : read) {
        if (!later[slot]) steps_[i].last.push_back(slot);
        later[slot] = true;
      }
    }
  }

  static IValue result_of(const Step& step, const std::vector<IValue>& slots, std::vector<IValue>& stack) {
    if (step.kind == Kind::item) return item(step.arguments[0].read(slots), step.arguments[1].read(slots).toInt());
    if (step.kind != Kind::call) {
      return number(step.kind, step.arguments[0].read(slots).toInt(), step.arguments[1].read(slots).toInt());
    }
    stack.clear();
    for (const Argument& argument : step.arguments) stack.push_back(argument.read(slots));
    step.op->callBoxed(stack);
    if (stack.size() == 1) return std::move(stack[0]);
    return c10::ivalue::Tuple::create(std::move(stack));
  }

  static IValue item(const IValue& value, int64_t index) {
    if (value.isTuple()) return value.toTupleRef().elements().at(index);
    if (value.isTensorList()) return value.toTensorList().get(index);
    return value.toList().get(index);
  }

  static IValue number(Kind kind, int64_t a, int64_t b) {
    switch (kind) {
      case Kind::add: return a + b;
      case Kind::subtract: return a - b;
      case Kind::multiply: return a * b;
      default: return floor_divide(a, b);
    }
  }

  int64_t inputs_;
  std::shared_ptr<const std::vector<IValue>> constants_ = std::make_shared<const std::vector<IValue>>();
  std::vector<Step> steps_;
  std::vector<int64_t> results_;
};

TORCH_LIBRARY_FRAGMENT(fxquant, m) {
  m.class_<Plan>("Plan")
      .def(torch::init<int64_t, IValue, std::vector<int64_t>>())
      .def("bind", &Plan::bind)
      .def("run", &Plan::run);
}

}  // namespace fxq::plan_binding
