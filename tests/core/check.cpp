// Holds every function of every instruction set of this machine to plain loops, and to vectors that the Python reference
// computed. Prints which set is chosen, then a line for each: name, comparisons that have to be equal to the bit, those
// that have a bound, the largest error as a part of its bound, a digest of the latter's floats, and how many are wrong.
//
//     check VECTORS
#include <cstdio>

#include "check_linear.h"
#include "check_rows.h"
#include "core.h"
#include "vectors.h"

namespace {

Report check_all(const fxq::Isa& isa, const std::vector<Case>& cases) {
  Report report;
  check::quantize(isa, report);
  check::linear(isa, report);
  check::weight_only(isa, report);
  check::embedding(isa, report);
  check::elementwise(isa, report);
  check::norm(isa, report);
  check::rotate(isa, report);
  check::attention(isa, report);
  for (const Case& each : cases) check::vector(isa, report, each);
  return report;
}

}  // namespace

int main(int count, char** arguments) {
  std::printf("chosen %s\n", fxq::isa() ? fxq::isa()->name : "none");
  const std::vector<Case> cases = read_cases(count > 1 ? arguments[1] : "");
  if (cases.empty()) return std::printf("no vectors\n"), 2;
  bool wrong = false;
  for (const fxq::Isa* isa : fxq::instruction_sets()) {
    const Report report = check_all(*isa, cases);
    wrong |= report.wrong > 0;
    std::printf("%s %lld %lld %.2f %08x %lld\n", isa->name, static_cast<long long>(report.exact),
                static_cast<long long>(report.near), report.worst, report.digest, static_cast<long long>(report.wrong));
  }
  return wrong ? 1 : 0;
}
