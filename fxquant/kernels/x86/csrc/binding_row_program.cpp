// fxquant::x86_row_program: reads a program (rows.py has its grammar), fills in tensors and runs it over torch's threads.
#include <ATen/ops/empty.h>
#include <ATen/record_function.h>
#include <torch/library.h>

#include <charconv>
#include <map>
#include <string>
#include <vector>

#include "binding.h"
#include "row_program.h"

namespace {

using at::Tensor;
using fxq::StepKind;
using std::string_view;

using Words = std::vector<std::string>;

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
    Words words = split_words(text.substr(at, end - at));
    at = end + 1;
    if (words.empty()) continue;
    const bool is_return = words[0] == "return";
    TORCH_CHECK(is_return || (words.size() > 3 && words[1] == "="), "fxquant::x86_row_program: cannot read the line '",
                c10::Join(" ", words), "'");
    if (is_return) source.results.assign(words.begin() + 1, words.end());
    else source.lines.emplace_back(words.begin() + 2, words.end());
  }
  return source;
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
  TORCH_CHECK(error == std::errc() && end == word.data() + word.size(), "fxquant::x86_row_program: '", word,
              "' is not a number");
  return value;
}

// A program with its tensors: what a call builds, runs and drops.
class Call {
 public:
  Call(const Source& source, const std::vector<Tensor>& inputs, const std::vector<Tensor>& constants)
      : source_(source), constants_(constants) {
    for (const Tensor& input : inputs) add_input(input);
    for (const Tensor& input : inputs_) rows_ = std::max(rows_, rows_of(input));
    for (const Tensor& input : inputs_)
      if (rows_of(input) == rows_) lead_ = lead_of(input);
    program_.rows = rows_;
    for (size_t i = 0; i < inputs_.size(); ++i) {
      const int64_t rows = rows_of(inputs_[i]);
      TORCH_CHECK(rows && rows_ % rows == 0 || rows_ == 0, "fxquant::x86_row_program: inputs of ", rows, " and of ", rows_,
                  " rows do not go together");
      program_.values[i].cycle = rows == rows_ ? 0 : rows;
    }
    for (size_t i = 0; i < source.lines.size(); ++i) add_step(i);
    for (const std::string& name : source.results) add_result(name);
  }

  std::vector<Tensor> run() {
    if (!rows_) return results_;
    trace();
    const int64_t scratch = fxq::place(program_);
    const fxq::Isa& isa = fxq::chosen_isa();
    const int64_t threads = macs_ * rows_ < fxq::kSerial ? 1 : at::get_num_threads();
    if (threads == 1 || rows_ >= 24 * threads) {
      fxq::over(threads, rows_, [&](int64_t a, int64_t b) { fxq::run(program_, isa, scratch, a, b); });
    } else {
      fxq::run_split(program_, isa, scratch,
                     [](int64_t macs, int64_t blocks, const void* work, void (*call)(const void*, int64_t, int64_t)) {
                       fxq::over(macs < fxq::kSerial ? 1 : at::get_num_threads(), blocks,
                                 [&](int64_t a, int64_t b) { call(work, a, b); });
                     });
    }
    return results_;
  }

 private:
  // Let a profiler see which kernels the op stands for.
  void trace() const {
    for (const fxq::Step& step : program_.steps) {
      if (step.kind == StepKind::linear || step.kind == StepKind::linear_bytes) {
        RECORD_FUNCTION("fxquant::x86_row_program.linear_int8", {});
      } else if (step.kind == StepKind::embedding) {
        RECORD_FUNCTION("fxquant::x86_row_program.embedding_int8", {});
      }
    }
  }

  static bool is_ids(const Tensor& input) { return !input.is_floating_point(); }
  static int64_t rows_of(const Tensor& input) {
    return is_ids(input) ? input.numel() : input.size(-1) ? input.numel() / input.size(-1) : 0;
  }
  static std::vector<int64_t> lead_of(const Tensor& input) {
    auto lead = input.sizes().vec();
    if (!is_ids(input)) lead.pop_back();
    return lead;
  }

  void add_input(const Tensor& given) {
    fxq::Value value;
    if (is_ids(given)) {
      inputs_.push_back(given.to(at::kLong).contiguous());
      value.ids = inputs_.back().const_data_ptr<int64_t>();
      value.width = 1;
    } else {
      TORCH_CHECK(given.dim() > 0, "fxquant::x86_row_program: an input has no axis of columns");
      inputs_.push_back(given.to(at::kFloat).contiguous());
      value.data = const_cast<float*>(inputs_.back().const_data_ptr<float>());  // an input is only read
      value.width = given.size(-1);
    }
    program_.values.push_back(value);
  }

  const Tensor& constant(const std::string& word) const {
    const auto index = number<size_t>(word.substr(1));
    TORCH_CHECK(word[0] == 'c' && index < constants_.size(), "fxquant::x86_row_program: there is no constant '", word, "'");
    const Tensor& tensor = constants_[index];
    TORCH_CHECK(tensor.is_contiguous(), "fxquant::x86_row_program: constant ", word, " is not contiguous");
    return tensor;
  }

  template <class T>
  const T* constant_of(const std::string& word, int64_t count) const {
    if (word == "-") return nullptr;
    const Tensor& tensor = constant(word);
    TORCH_CHECK(count < 0 || tensor.numel() == count, "fxquant::x86_row_program: constant ", word, " has ", tensor.numel(),
                " values, not ", count);
    return tensor.const_data_ptr<T>();
  }

  int value(const std::string& word) const {
    if (word == "-") return -1;
    const int first = static_cast<int>(inputs_.size());
    const int index = number<int>(word.substr(1)) + (word[0] == 'v' ? first : 0);
    TORCH_CHECK((word[0] == 'v' && index < static_cast<int>(program_.values.size())) ||
                    (word[0] == 'x' && index < first),
                "fxquant::x86_row_program: there is no value '", word, "'");
    return index;
  }

  int full(int v) {  // the value, with all rows
    if (v < 0 || !program_.values[v].cycle) return v;
    auto shape = lead_;
    shape.push_back(program_.values[v].width);
    inputs_[v] = inputs_[v].expand(shape).contiguous();
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
      TORCH_CHECK(words.size() == count + 1, "fxquant::x86_row_program: ", kind, " takes ", count, " operands, not ",
                  words.size() - 1);
    };
    step.a = value(words[1]);
    if (kind == "embedding") {
      arity(3);
      add_embedding(words, step, out);
    } else if (kind == "add" || kind == "multiply") {
      arity(2);
      step.kind = kind == "add" ? StepKind::add : StepKind::multiply;
      step.b = value(words[2]);
      full(step.a);
      out.width = program_.values[step.a].width;
    } else if (kind == "norm") {
      arity(5);
      step.kind = StepKind::norm;
      out.width = program_.values[full(step.a)].width;
      step.norm = {out.width, constant_of<float>(words[2], out.width), constant_of<float>(words[3], out.width),
                   number<float>(words[5]), words[4] == "rms"};
    } else if (kind == "linear") {
      arity(10);
      step.kind = StepKind::linear;
      add_linear(words, 2, step, out);
      step.scheme = fxq::scheme_of(words[8], words[9] == "symmetric", words[10]);
    } else if (kind == "linear_bytes") {
      arity(14);
      step.kind = StepKind::linear_bytes;
      add_linear(words, 4, step, out);
      step.scale = *constant_of<float>(words[2], 1);
      step.zero_point = *constant_of<int32_t>(words[3], 1) + program_.values[step.a].shift;
      if (words[10] != "-") requantize(words, 10, step, out);
    } else {
      TORCH_CHECK(kind == "quantize", "fxquant::x86_row_program: there is no step '", kind, "'");
      arity(6);
      step.kind = StepKind::quantize;
      out.width = program_.values[full(step.a)].width;
      add_quantize(words, step, out);
    }
    program_.values.push_back(out);
    program_.steps.push_back(step);
  }

  void add_embedding(const Words& words, fxq::Step& step, fxq::Value& out) {
    step.kind = StepKind::embedding;
    const Tensor &table = constant(words[2]), &scale = constant(words[3]);
    const bool indices = step.a < static_cast<int>(inputs_.size()) && is_ids(inputs_[step.a]);
    TORCH_CHECK(indices, "fxquant::x86_row_program: an embedding takes indices");
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

  // The weight, its scale and sums, the bias, the residual and the activation stand at words[at …].
  void add_linear(const Words& words, size_t at, fxq::Step& step, fxq::Value& out) {
    const Tensor &packed = constant(words[at]), &scale = constant(words[at + 1]), &sum = constant(words[at + 2]);
    fxq::Linear& op = step.linear;
    op.weight = packed.const_data_ptr<int8_t>();
    op.n = sum.numel();
    op.depths = packed.size(1);
    op.weight_scale = scale.const_data_ptr<float>();
    op.per_column = scale.numel() > 1;
    op.weight_sum = sum.const_data_ptr<int32_t>();
    op.bias = constant_of<float>(words[at + 3], op.n);
    step.b = full(value(words[at + 4]));
    op.activation = fxq::activation_of(words[at + 5]);
    out.width = op.n;
    const int64_t k = program_.values[full(step.a)].width;
    TORCH_CHECK((k + 3) / 4 == op.depths, "fxquant::x86_row_program: ", words[1], " has ", k, " features, the weight ",
                op.depths * 4, " or up to 3 fewer");
    macs_ += k * op.n;
  }

  // Scale, zero point, least, greatest and dtype of the bytes that a step gives stand at words[at …].
  void requantize(const Words& words, size_t at, fxq::Step& step, fxq::Value& out) {
    TORCH_CHECK(out.width % fxq::kDepth == 0, "fxquant::x86_row_program: bytes of ", out.width, " columns are not a multiple of 4");
    fxq::Linear& op = step.linear;
    out.shift = words[at + 4] == "int8" ? 128 : 0;
    op.out_scale = *constant_of<float>(words[at], 1);
    op.out_zero_point = *constant_of<int32_t>(words[at + 1], 1) + out.shift;
    op.out_qmin = number<int32_t>(words[at + 2]) + out.shift;
    op.out_qmax = number<int32_t>(words[at + 3]) + out.shift;
    out.bytes = true;
  }

  void add_quantize(const Words& words, fxq::Step& step, fxq::Value& out) {
    out.shift = words[6] == "int8" ? 128 : 0;
    step.scale = *constant_of<float>(words[2], 1);
    step.zero_point = *constant_of<int32_t>(words[3], 1);
    step.scheme = {false, number<int32_t>(words[4]), number<int32_t>(words[5]), 0, 1.0f, out.shift};
    out.bytes = true;
  }

  void add_result(const std::string& name) {
    fxq::Value& result = program_.values[value(name)];
    TORCH_CHECK(name[0] == 'v' && !result.bytes, "fxquant::x86_row_program: ", name, " cannot be returned");
    auto shape = lead_;
    shape.push_back(result.width);
    results_.push_back(at::empty(shape, at::TensorOptions().dtype(at::kFloat)));
    result.data = results_.back().mutable_data_ptr<float>();
  }

  const Source& source_;
  const std::vector<Tensor>& constants_;
  std::vector<Tensor> inputs_, results_;
  std::vector<int64_t> lead_;
  fxq::Program program_;
  int64_t rows_ = 0, macs_ = 0;
};

std::vector<Tensor> rows(const std::vector<Tensor>& inputs, const std::vector<Tensor>& constants, string_view program) {
  return Call(parsed(program), inputs, constants).run();
}

}  // namespace

TORCH_LIBRARY_IMPL(fxquant, CPU, m) { m.impl("x86_row_program", rows); }
