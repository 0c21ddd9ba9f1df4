// fxquant::row_program: reads a program (row_program.py has its grammar), fills in tensors and runs it over torch's threads.
#include <ATen/ExpandUtils.h>
#include <ATen/ops/empty.h>
#include <ATen/record_function.h>
#include <torch/library.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <string>
#include <vector>

#include "binding.h"
#include "row_program.h"
#include "weight_only_operands.h"

namespace fxq::row_program_binding {

using at::Tensor;
using fxq::StepKind;
using std::string_view;

using Words = std::vector<std::string>;

// Below this many multiply-accumulates waking a second thread costs more than it gives.
constexpr int64_t kAlone = int64_t{1} << 20;

// From so many rows a thread on, each has rows of its own: then none waits for others, nor reads what they computed, which
// takes long where they do not share a cache. But every thread reads all weights. Of a model whose layers have few
// bytes of them they are in a cache and it pays early; those of larger ones come from memory.
constexpr int64_t kLight = int64_t{1} << 21, kOwnRows = 4, kOwnRowsHeavy = 48;

struct Source {
  std::vector<Words> lines;  // "v0 = kind operand …" as {kind, operand, …}
  Words results;
};

Words split_words(string_view line) {
  Words words;
  for (size_t at = 0; at < line.size();) {
    const size_t end = std::min(line.find(' ', at), line.size());
    if (end > at) words.emplace_back(line.substr(at, end - at));
    at = end + 1;
  }
  return words;
}

Source parse(string_view text) {
  Source source;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const Words words = split_words(text.substr(at, end - at));
    at = end + 1;
    if (words.empty()) continue;
    if (words[0] == "return") {
      source.results.assign(words.begin() + 1, words.end());
      return source;
    }
    TORCH_CHECK(words.size() > 3 && words[1] == "=", "fxquant::row_program: cannot read the line '",
                c10::Join(" ", words), "'");
    TORCH_CHECK(words[0] == c10::str("v", source.lines.size()), "fxquant::row_program: the line '",
                c10::Join(" ", words), "' is step ", source.lines.size(), ", which gives v", source.lines.size());
    source.lines.emplace_back(words.begin() + 2, words.end());
  }
  TORCH_CHECK(false, "fxquant::row_program: the program returns nothing");
}

const Source& parsed(string_view text) {
  thread_local std::map<std::string, Source, std::less<>> known;
  const auto found = known.find(text);
  return found != known.end() ? found->second : known.emplace(std::string(text), parse(text)).first->second;
}

template <class Number>
Number number(const std::string& word) {
  Number value{};
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
  TORCH_CHECK(error == std::errc() && end == word.data() + word.size(), "fxquant::row_program: '", word,
              "' is not a number");
  return value;
}

// A program with its tensors: what a call builds, runs and drops.
class Call {
 public:
  Call(const Source& source, const std::vector<Tensor>& inputs, const std::vector<Tensor>& constants)
      : source_(source), constants_(constants) {
    for (const Tensor& input : inputs) lead_ = at::infer_size(lead_, lead_of(input));
    rows_ = c10::multiply_integers(lead_);
    program_.rows = rows_;
    for (const Tensor& input : inputs) add_input(input);
    for (size_t i = 0; i < source.lines.size(); ++i) add_step(i);
    for (const std::string& name : source.results) add_result(name);
  }

  std::vector<Tensor> run() {
    if (!rows_) return results_;
    trace();
    const int64_t scratch = fxq::place(program_);
    const fxq::Isa& isa = fxq::chosen_isa();
    const int64_t all = at::get_num_threads();
    if (rows_ >= (macs_ <= kLight ? kOwnRows : kOwnRowsHeavy) * all) {
      fxq::over(macs_ * rows_ < fxq::kSerial ? 1 : all, rows_,
                [&](int64_t a, int64_t b) { fxq::run(program_, isa, scratch, a, b); });
    } else {
      run_together(isa, scratch, macs_ * rows_ < kAlone ? 1 : all);
    }
    return results_;
  }

 private:
  // Few rows: the threads share the columns of each linear instead.
  void run_together(const fxq::Isa& isa, int64_t scratch, int64_t threads) {
#if !AT_PARALLEL_OPENMP
    threads = 1;  // only of OpenMP is it known that all bodies of a loop run at the same time
#endif
    fxq::Team team;
    uint8_t* memory = fxq::shared_memory(program_, scratch);
    fxq::over(threads, threads, [&](int64_t a, int64_t b) {
      fxq::run_together(program_, isa, scratch, memory, team, team.join(b - a, threads));
    });
  }

  // Let a profiler see which kernels the op stands for.
  void trace() const {
    for (const fxq::Step& step : program_.steps) {
      if (step.kind == StepKind::linear || step.kind == StepKind::linear_bytes) {
        RECORD_FUNCTION("fxquant::row_program.linear_int8", {});
      } else if (step.kind == StepKind::weight_only) {
        RECORD_FUNCTION("fxquant::row_program.linear_weight_only", {});
      } else if (step.kind == StepKind::embedding) {
        RECORD_FUNCTION("fxquant::row_program.embedding_int8", {});
      }
    }
  }

  static bool is_ids(const Tensor& input) { return !input.is_floating_point(); }
  static std::vector<int64_t> lead_of(const Tensor& input) {
    TORCH_CHECK(is_ids(input) || input.dim() > 0, "fxquant::row_program: an input has no axis of columns");
    auto lead = input.sizes().vec();
    if (!is_ids(input)) lead.pop_back();
    return lead;
  }

  // How many rows an input has that repeat, as a whole, over all rows; 0: it has all, or does not go so.
  int64_t cycle_of(const std::vector<int64_t>& lead) const {
    const auto own = std::find_if(lead.begin(), lead.end(), [](int64_t size) { return size != 1; });
    const int64_t rows = c10::multiply_integers(lead);
    return rows != rows_ && std::equal(own, lead.end(), lead_.end() - (lead.end() - own)) ? rows : 0;
  }

  // The input with all rows.
  Tensor expanded(const Tensor& input) const {
    auto shape = lead_;
    if (!is_ids(input)) shape.push_back(input.size(-1));
    return input.expand(shape).contiguous();
  }

  void add_input(const Tensor& given) {
    fxq::Value value;
    value.cycle = cycle_of(lead_of(given));
    const Tensor typed = given.to(is_ids(given) ? at::kLong : at::kFloat);
    inputs_.push_back(value.cycle ? typed.contiguous() : expanded(typed));
    const Tensor& input = inputs_.back();
    if (is_ids(input)) {
      value.ids = input.const_data_ptr<int64_t>();
      value.width = 1;
    } else {
      value.data = const_cast<float*>(input.const_data_ptr<float>());  // an input is only read
      value.width = input.size(-1);
    }
    program_.values.push_back(value);
  }

  const Tensor& constant(const std::string& word) const {
    const auto index = number<size_t>(word.substr(1));
    TORCH_CHECK(word[0] == 'c' && index < constants_.size(), "fxquant::row_program: there is no constant '", word, "'");
    const Tensor& tensor = constants_[index];
    TORCH_CHECK(tensor.is_contiguous(), "fxquant::row_program: constant ", word, " is not contiguous");
    return tensor;
  }

  template <class T>
  const T* constant_of(const std::string& word, int64_t count) const {
    if (word == "-") return nullptr;
    const Tensor& tensor = constant(word);
    TORCH_CHECK(count < 0 || tensor.numel() == count, "fxquant::row_program: constant ", word, " has ", tensor.numel(),
                " values, not ", count);
    return tensor.const_data_ptr<T>();
  }

  template <class T>
  T scalar(const std::string& word) const {
    const T* found = constant_of<T>(word, 1);
    TORCH_CHECK(found, "fxquant::row_program: a scale or zero point is missing");
    return *found;
  }

  int value(const std::string& word) const {
    const bool is_step = word[0] == 'v';
    TORCH_CHECK(is_step || word[0] == 'x', "fxquant::row_program: there is no value '", word, "'");
    const size_t index = number<uint32_t>(word.substr(1)) + (is_step ? inputs_.size() : 0);
    TORCH_CHECK(index < (is_step ? program_.values.size() : inputs_.size()),
                "fxquant::row_program: there is no value '", word, "'");
    return static_cast<int>(index);
  }

  bool holds_ids(int v) const { return v < static_cast<int>(inputs_.size()) && is_ids(inputs_[v]); }

  // A value of floats, of this width where one is given. It may have fewer rows.
  int floats(const std::string& word, int64_t width = -1) const {
    const int v = value(word);
    const fxq::Value& found = program_.values[v];
    TORCH_CHECK(!found.bytes && !holds_ids(v), "fxquant::row_program: ", word, " does not hold floats");
    TORCH_CHECK(width < 0 || found.width == width, "fxquant::row_program: ", word, " has ", found.width,
                " columns, not ", width);
    return v;
  }

  int bytes(const std::string& word) const {
    const int v = value(word);
    TORCH_CHECK(program_.values[v].bytes, "fxquant::row_program: ", word, " does not hold bytes");
    return v;
  }

  int full(int v) {  // the value, with all rows
    if (!program_.values[v].cycle) return v;
    inputs_[v] = expanded(inputs_[v]);
    program_.values[v].data = inputs_[v].mutable_data_ptr<float>();
    program_.values[v].cycle = 0;
    return v;
  }

  void add_step(size_t index) {
    const Words& words = source_.lines[index];
    fxq::Step step{};
    fxq::Value out;
    const std::string& kind = words[0];
    const auto arity = [&](size_t count) {
      TORCH_CHECK(words.size() == count + 1, "fxquant::row_program: ", kind, " takes ", count, " operands, not ",
                  words.size() - 1);
    };
    if (kind == "embedding") {
      arity(3);
      add_embedding(words, step, out);
    } else if (kind == "add" || kind == "multiply") {
      arity(2);
      step.kind = kind == "add" ? StepKind::add : StepKind::multiply;
      step.a = full(floats(words[1]));
      out.width = program_.values[step.a].width;
      step.b = floats(words[2], out.width);
    } else if (kind == "activate") {
      arity(2);
      step.kind = StepKind::activate;
      step.a = full(floats(words[1]));
      out.width = program_.values[step.a].width;
      step.activation = fxq::activation_of(words[2]);
    } else if (kind == "norm") {
      arity(5);
      step.kind = StepKind::norm;
      step.a = full(floats(words[1]));
      out.width = program_.values[step.a].width;
      step.norm = {out.width, constant_of<float>(words[2], out.width), constant_of<float>(words[3], out.width),
                   static_cast<float>(number<double>(words[5])), words[4] == "rms"};
    } else if (kind == "columns") {
      arity(3);
      add_columns(words, step, out);
    } else if (kind == "weight_only") {
      arity(10);
      add_weight_only(words, step, out);
    } else if (kind == "linear") {
      arity(10);
      step.kind = StepKind::linear;
      step.a = full(floats(words[1]));
      add_linear(words, 2, step, out);
      step.scheme = fxq::scheme_of(words[8], words[9] == "symmetric", words[10]);
    } else if (kind == "linear_bytes") {
      arity(14);
      step.kind = StepKind::linear_bytes;
      step.a = bytes(words[1]);
      add_linear(words, 4, step, out);
      step.scale = scalar<float>(words[2]);
      step.zero_point = scalar<int32_t>(words[3]) + program_.values[step.a].shift;
      if (words[10] != "-") requantize(words, 10, step, out);
    } else {
      TORCH_CHECK(kind == "quantize", "fxquant::row_program: there is no step '", kind, "'");
      arity(6);
      step.kind = StepKind::quantize;
      step.a = full(floats(words[1]));
      out.width = program_.values[step.a].width;
      add_quantize(words, step, out);
    }
    program_.values.push_back(out);
    program_.steps.push_back(step);
  }

  void add_embedding(const Words& words, fxq::Step& step, fxq::Value& out) {
    step.kind = StepKind::embedding;
    const Tensor &table = constant(words[2]), &scale = constant(words[3]);
    step.a = value(words[1]);
    TORCH_CHECK(holds_ids(step.a), "fxquant::row_program: ", words[1], " does not hold indices");
    TORCH_CHECK(scale.numel() == 1 || scale.numel() == table.size(0), "fxquant::row_program: constant ", words[3],
                " has ", scale.numel(), " values, not 1 or ", table.size(0));
    step.table = table.const_data_ptr<int8_t>();
    step.table_scale = scale.const_data_ptr<float>();
    step.per_row = scale.numel() > 1;
    const int64_t count = inputs_[step.a].numel(), rows = table.size(0);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t id = program_.values[step.a].ids[i];
      TORCH_CHECK_INDEX(id >= 0 && id < rows, "index ", id, " is out of range for a table of ", rows);
    }
    out.width = table.size(1);
  }

  void add_columns(const Words& words, fxq::Step& step, fxq::Value& out) {
    step.kind = StepKind::columns;
    step.a = full(floats(words[1]));
    step.first = number<int64_t>(words[2]);
    out.width = number<int64_t>(words[3]) - step.first;
    TORCH_CHECK(step.first >= 0 && out.width > 0 && step.first + out.width <= program_.values[step.a].width,
                "fxquant::row_program: ", words[1], " has ", program_.values[step.a].width, " columns, not ", words[2],
                " to ", words[3]);
  }

  void add_weight_only(const Words& words, fxq::Step& step, fxq::Value& out) {
    step.kind = StepKind::weight_only;
    step.a = full(floats(words[1]));
    out.width = number<int64_t>(words[8]);
    const auto zero_point = words[4] == "-" ? std::nullopt : std::optional<Tensor>(constant(words[4]));
    fxq::WeightOnly& op = step.weight;
    op = fxq::weight_only_of(program_.values[step.a].width, constant(words[2]), constant(words[3]), zero_point, out.width,
                             number<int64_t>(words[9]));
    TORCH_CHECK(op.k % fxq::depths(op) == 0 && (op.groups <= 1 || op.group % fxq::depths(op) == 0),
                "fxquant::row_program: ", op.k, " features in groups of ", op.group, " are no whole steps of ",
                fxq::depths(op));
    op.bias = constant_of<float>(words[5], op.n);
    if (words[6] != "-") step.b = full(floats(words[6], op.n));
    op.activation = fxq::activation_of(words[7]);
    op.activated = words[10] == "-" ? op.n : number<int64_t>(words[10]);
    TORCH_CHECK(op.activated >= op.n || op.activated % fxq::kColumns == 0, "fxquant::row_program: the first ",
                op.activated, " columns have an activation, which are no whole blocks of ", fxq::kColumns);
    macs_ += op.k * op.n;
  }

  // The weight, its scale and sums, the bias, the residual and the activation stand at words[at …].
  void add_linear(const Words& words, size_t at, fxq::Step& step, fxq::Value& out) {
    const Tensor &packed = constant(words[at]), &scale = constant(words[at + 1]), &sum = constant(words[at + 2]);
    fxq::Linear& op = step.linear;
    op.n = sum.numel();
    fxq::check_packed(packed, program_.values[step.a].width, op.n);
    TORCH_CHECK(scale.numel() == 1 || scale.numel() == op.n, "fxquant::row_program: constant ", words[at + 1], " has ",
                scale.numel(), " values, not 1 or ", op.n);
    op.weight = packed.const_data_ptr<int8_t>();
    op.depths = packed.size(1);
    op.weight_scale = scale.const_data_ptr<float>();
    op.per_column = scale.numel() > 1;
    op.weight_sum = sum.const_data_ptr<int32_t>();
    op.bias = constant_of<float>(words[at + 3], op.n);
    if (words[at + 4] != "-") step.b = full(floats(words[at + 4], op.n));
    op.activation = fxq::activation_of(words[at + 5]);
    out.width = op.n;
    macs_ += program_.values[step.a].width * op.n;
  }

  // Scale, zero point, least, greatest and dtype of the bytes that a step gives stand at words[at …].
  void requantize(const Words& words, size_t at, fxq::Step& step, fxq::Value& out) {
    TORCH_CHECK(out.width % fxq::kDepth == 0, "fxquant::row_program: bytes of ", out.width, " columns are not a multiple of 4");
    fxq::Linear& op = step.linear;
    out.shift = words[at + 4] == "int8" ? 128 : 0;
    op.out_scale = scalar<float>(words[at]);
    op.out_zero_point = scalar<int32_t>(words[at + 1]) + out.shift;
    op.out_qmin = number<int32_t>(words[at + 2]) + out.shift;
    op.out_qmax = number<int32_t>(words[at + 3]) + out.shift;
    out.bytes = true;
  }

  void add_quantize(const Words& words, fxq::Step& step, fxq::Value& out) {
    out.shift = words[6] == "int8" ? 128 : 0;
    step.scale = scalar<float>(words[2]);
    step.zero_point = scalar<int32_t>(words[3]);
    step.scheme = {false, number<int32_t>(words[4]), number<int32_t>(words[5]), 0, 1.0f, out.shift};
    out.bytes = true;
  }

  void add_result(const std::string& word) {
    const std::string name = word.substr(0, word.find(':'));
    TORCH_CHECK(name[0] == 'v', "fxquant::row_program: ", name, " is not the result of a step");
    const int index = floats(name);
    fxq::Value& result = program_.values[index];
    TORCH_CHECK(!result.data && !result.half, "fxquant::row_program: ", name, " is returned twice");
    auto shape = lead_;
    shape.push_back(result.width);
    const bool half = word != name;
    results_.push_back(at::empty(shape, at::TensorOptions().dtype(half ? at::kBFloat16 : at::kFloat)));
    if (half) result.half = half_of(word, index);
    else result.data = results_.back().mutable_data_ptr<float>();
  }

  fxq::Half* half_of(const std::string& word, int index) {
    TORCH_CHECK(word.substr(word.find(':')) == ":bfloat16", "fxquant::row_program: a result is bfloat16 or float32, not ",
                word);
    const StepKind kind = program_.steps[index - program_.first()].kind;
    bool alone = kind == StepKind::linear || kind == StepKind::linear_bytes;
    for (const fxq::Step& step : program_.steps) alone &= step.a != index && step.b != index;
    TORCH_CHECK(alone, "fxquant::row_program: ", word, " is not the result of a linear that no step reads");
    return reinterpret_cast<fxq::Half*>(results_.back().mutable_data_ptr<at::BFloat16>());
  }

  const Source& source_;
  const std::vector<Tensor>& constants_;
  std::vector<Tensor> inputs_, results_;
  std::vector<int64_t> lead_;
  fxq::Program program_;
  int64_t rows_ = 0, macs_ = 0;  // multiply-accumulates of a row, which are the bytes of the weights
};

std::vector<Tensor> rows(const std::vector<Tensor>& inputs, const std::vector<Tensor>& constants, string_view program) {
  return Call(parsed(program), inputs, constants).run();
}

TORCH_LIBRARY_IMPL(fxquant, CPU, m) { m.impl("row_program", rows); }

}  // namespace fxq::row_program_binding
