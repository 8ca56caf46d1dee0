// Cases of the gated activations for the CPU backend's tests: drawn values of every kind, and how a
// case runs on one table of row functions.
#pragma once

#include "cpu_case.h"

namespace rmsnorm {
namespace {

constexpr rmsnorm_activation_t kActivations[] = {RMSNORM_ACTIVATION_SILU,
                                                 RMSNORM_ACTIVATION_GELU_TANH,
                                                 RMSNORM_ACTIVATION_GELU_ERF};
const char *const kInputs[] = {"dy", "gate", "up"};

const char *const kGluNames[] = {"dy", "gate", "up", "y", "dgate", "dup"};

// These six, of one shape, for both operations. dgate or dup may be absent.
struct GluCase {
  int64_t rows, groups, cols;
  rmsnorm_dtype_t dtypes[6];
  rmsnorm_activation_t activation;
  uint64_t seed;
};
inline std::ostream &operator<<(std::ostream &out, const GluCase &c) {
  out << c.rows << " x " << c.groups << " x " << c.cols << " activation " << c.activation;
  for (const rmsnorm_dtype_t dtype : c.dtypes) out << " " << dtype_name(dtype);
  return out << " seed " << c.seed;
}

inline Arrays make_arrays(const GluCase &c, const Layout &layout) {
  Arrays arrays;
  uint64_t next = c.seed;
  const auto random = [&next] {
    return (next = next * 6364136223846793005u + 1442695040888963407u) >> 33;
  };
  for (int i = 0; i < 6; ++i) {
    if (c.dtypes[i] == kNone) continue;
    Array array(c.dtypes[i], c.rows, c.groups, c.cols, layout);
    for (int64_t r = 0; r < c.rows; ++r)
      for (int64_t g = 0; g < c.groups; ++g)
        for (int64_t col = 0; col < c.cols; ++col) {
          if (random() % 4 == 0) {
            const uint64_t bits = random() << 33 | random() << 2;
            const size_t size = static_cast<size_t>(element_size(c.dtypes[i]));
            std::memcpy(array.at(r, g, col), reinterpret_cast<const char *>(&bits) + 8 - size,
                        size);
          } else {
            const double number = (static_cast<double>(random()) - 0x1p30) * 0x1p-27;
            reference::store(number, array.at(r, g, col), c.dtypes[i]);
          }
        }
    arrays.emplace(kGluNames[i], std::move(array));
  }
  return arrays;
}

inline GluForwardProblem glu_forward_problem(const GluCase &c, Arrays *arrays) {
  GluForwardProblem p;
  p.rows = c.rows, p.groups = c.groups, p.cols = c.cols, p.activation = c.activation;
  p.gate = view_of(arrays, "gate"), p.up = view_of(arrays, "up"), p.y = view_of(arrays, "y");
  return p;
}

inline GluBackwardProblem glu_backward_problem(const GluCase &c, Arrays *arrays) {
  GluBackwardProblem p;
  p.rows = c.rows, p.groups = c.groups, p.cols = c.cols, p.activation = c.activation;
  p.dy = view_of(arrays, "dy"), p.gate = view_of(arrays, "gate"), p.up = view_of(arrays, "up");
  p.dgate = view_of(arrays, "dgate"), p.dup = view_of(arrays, "dup");
  return p;
}

inline void run(const GluCase &c, const State &state, Arrays *arrays) {
  const GluForwardProblem forward = glu_forward_problem(c, arrays);
  ASSERT_EQ(cpu::glu_forward(&state, forward, {nullptr, nullptr}), RMSNORM_SUCCESS);
  const GluBackwardProblem backward = glu_backward_problem(c, arrays);
  if (!backward.dgate.present() && !backward.dup.present()) return;
  ASSERT_EQ(cpu::glu_backward(&state, backward, {nullptr, nullptr}), RMSNORM_SUCCESS);
}

inline Bits bits_with(const GluCase &c, const State &state, Arrays arrays) {
  Arrays inputs = arrays;
  run(c, state, &arrays);
  Bits bits;
  for (auto &[name, array] : arrays) {
    EXPECT_TRUE(array.outside_intact()) << name << " of " << c;
    bits[name] = array.bits();
  }
  for (const char *name : kInputs) EXPECT_EQ(bits[name], inputs[name].bits()) << name;
  return bits;
}

}  // namespace
}  // namespace rmsnorm
