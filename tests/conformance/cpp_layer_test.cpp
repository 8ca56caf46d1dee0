// rmsnorm.hpp: it gives the bits of the C calls that it stands for, refuses what does not fit by
// name before anything is written, and owns what it says it owns. What the calls compute is judged
// elsewhere.
#include "rmsnorm.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "../support/on_device.h"

namespace rmsnorm_test {
namespace {

using rmsnorm::BFloat16;
using rmsnorm::Float16;
using rmsnorm::matrix;
using rmsnorm::Status;
using rmsnorm::tensor;
using rmsnorm::View;

static_assert(!std::is_copy_constructible_v<rmsnorm::Context>);
static_assert(!std::is_copy_assignable_v<rmsnorm::Context>);
static_assert(std::is_nothrow_move_constructible_v<rmsnorm::Context>);
static_assert(std::is_nothrow_move_assignable_v<rmsnorm::Context>);
static_assert(sizeof(rmsnorm::Context) == sizeof(void *));
static_assert(!std::is_convertible_v<Status, bool>);
static_assert(std::is_convertible_v<View<const float>, rmsnorm::Input>);
static_assert(std::is_convertible_v<View<float>, rmsnorm::Output>);
static_assert(!std::is_convertible_v<View<const float>, rmsnorm::Output>);
static_assert(!std::is_convertible_v<View<const BFloat16>, rmsnorm::Output>);

// ---- The bits of C
// -------------------------------------------------------------------------------

constexpr int64_t kRows = 5, kGroups = 3, kCols = 70;
constexpr int64_t kRowStride = 256, kGroupStride = 80;  // with gaps
constexpr int64_t kElements = kRows * kRowStride;

// Memory of a device with elements that are about 1 in every dtype, freed at the end.
template <class T>
class Memory {
 public:
  using Element = typename View<T>::Element;

  Memory(Device &device, int64_t size, unsigned seed) : device_(device), host_(size) {
    for (Element &element : host_) {
      seed = seed * 1664525 + 1013904223;
      const unsigned bits = seed >> 25;  // 7 of them, which every dtype has
      if constexpr (std::is_same_v<T, Float16>)
        element = static_cast<Element>(0x3c00 + (bits << 3) + (bits & 1) * 0x8000);
      else if constexpr (std::is_same_v<T, BFloat16>)
        element = static_cast<Element>(0x3f80 + bits + (bits & 1) * 0x8000);
      else element = (bits & 1 ? -1 : 1) * (1 + static_cast<Element>(bits) / 128);
    }
    memory_ = device.allocate(bytes());
    device.upload(memory_, host_.data(), bytes());
  }
  Memory(const Memory &) = delete;
  Memory &operator=(const Memory &) = delete;
  ~Memory() { device_.release(memory_); }

  Element *get() const { return static_cast<Element *>(memory_); }
  std::vector<Element> read() {
    EXPECT_EQ(device_.synchronize(), "");
    device_.download(host_.data(), memory_, bytes());
    return host_;
  }

 private:
  size_t bytes() const { return host_.size() * sizeof(Element); }

  Device &device_;
  std::vector<Element> host_;
  void *memory_;
};

template <class T>
using RstdOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
rmsnorm_input_t c_input(const Memory<T> &memory, int64_t row_stride, int64_t group_stride) {
  return {memory.get(), row_stride, group_stride, rmsnorm::Dtype<T>::value, 0};
}
template <class T>
rmsnorm_tensor_t c_output(const Memory<T> &memory, int64_t row_stride, int64_t group_stride) {
  return {memory.get(), row_stride, group_stride, rmsnorm::Dtype<T>::value, 0};
}
template <class T>
auto rows_view(const Memory<T> &memory) {
  return tensor<T>(memory.get(), kRows, kGroups, kCols, kRowStride, kGroupStride);
}
template <class T>
auto per_group_view(const Memory<T> &memory) {
  return tensor<T>(memory.get(), 1, kGroups, kCols);
}

class CppLayerOf : public OnDevice {
 protected:
  void SetUp() override {
    OnDevice::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    rmsnorm::ContextOptions options;
    options.device = GetParam();
    const Status status = rmsnorm::Context::create(options, &context_);
    ASSERT_TRUE(status.ok()) << status.text();
  }

  template <class T>
  void forward_gives_the_bits_of_c() {
    const Memory<T> x(device(), kElements, 1), residual(device(), kElements, 2);
    const Memory<T> weight(device(), kGroups * kCols, 3), bias(device(), kCols, 4);
    std::vector<typename View<T>::Element> y[2], h[2];
    std::vector<RstdOf<T>> rstd[2];
    for (const bool in_c : {true, false}) {
      Memory<T> y_memory(device(), kElements, 5), h_memory(device(), kElements, 6);
      Memory<RstdOf<T>> rstd_memory(device(), kRows * kGroups, 7);
      rmsnorm::Forward args;
      args.eps = 1e-3, args.weight_offset = 1, args.rounding = RMSNORM_ROUNDING_LLAMA;
      args.x = rows_view(x), args.residual = rows_view(residual);
      args.weight = per_group_view(weight), args.bias = rmsnorm::vector<T>(bias.get(), kCols);
      args.y = rows_view(y_memory), args.residual_out = rows_view(h_memory);
      args.rstd = tensor(rstd_memory.get(), kRows, kGroups, 1);
      rmsnorm::Workspace workspace;
      Status status = rmsnorm::forward_workspace_size(context_, args, &workspace.size);
      ASSERT_TRUE(status.ok()) << status.text();
      const Memory<float> bytes(device(), static_cast<int64_t>(workspace.size / 4 + 1), 8);
      workspace.data = bytes.get();
      if (in_c) {
        rmsnorm_forward_params_t params = RMSNORM_FORWARD_PARAMS_INIT;
        params.rows = kRows, params.groups = kGroups, params.cols = kCols;
        params.eps = 1e-3, params.weight_offset = 1, params.rounding = RMSNORM_ROUNDING_LLAMA;
        params.x = c_input(x, kRowStride, kGroupStride);
        params.residual = c_input(residual, kRowStride, kGroupStride);
        params.weight = c_input(weight, 0, kCols);
        params.bias = c_input(bias, 0, 0);
        params.y = c_output(y_memory, kRowStride, kGroupStride);
        params.residual_out = c_output(h_memory, kRowStride, kGroupStride);
        params.rstd = c_output(rstd_memory, kGroups, 1);
        ASSERT_EQ(rmsnorm_forward(context_.get(), &params, workspace.data, workspace.size,
                                  device().stream()),
                  0);
      } else {
        status = rmsnorm::forward(context_, args, workspace, device().stream());
        ASSERT_TRUE(status.ok()) << status.text();
      }
      y[in_c] = y_memory.read(), h[in_c] = h_memory.read(), rstd[in_c] = rstd_memory.read();
    }
    EXPECT_EQ(y[0], y[1]);
    EXPECT_EQ(h[0], h[1]);
    EXPECT_EQ(rstd[0], rstd[1]);
  }

  template <class T>
  void backward_gives_the_bits_of_c() {
    const Memory<T> dy(device(), kElements, 1), x(device(), kElements, 2);
    const Memory<T> weight(device(), kCols, 3), dh(device(), kElements, 4);
    const Memory<RstdOf<T>> rstd(device(), kRows * kGroups, 5);
    std::vector<typename View<T>::Element> dx[2], dresidual[2], dweight[2], dbias[2];
    for (const bool in_c : {true, false}) {
      Memory<T> dx_memory(device(), kElements, 6), dresidual_memory(device(), kElements, 7);
      Memory<T> dweight_memory(device(), kCols, 8), dbias_memory(device(), kCols, 9);
      rmsnorm::Backward args;
      args.eps = 1e-3, args.weight_offset = 1, args.flags = RMSNORM_FLAG_ACCUMULATE;
      args.dy = rows_view(dy), args.x = rows_view(x), args.dresidual_out = rows_view(dh);
      args.weight = rmsnorm::vector<T>(weight.get(), kCols);
      args.rstd = tensor(rstd.get(), kRows, kGroups, 1);
      args.dx = rows_view(dx_memory), args.dresidual = rows_view(dresidual_memory);
      args.dweight = rmsnorm::vector<T>(dweight_memory.get(), kCols);
      args.dbias = rmsnorm::vector<T>(dbias_memory.get(), kCols);
      rmsnorm::Workspace workspace;
      Status status = rmsnorm::backward_workspace_size(context_, args, &workspace.size);
      ASSERT_TRUE(status.ok()) << status.text();
      const Memory<float> bytes(device(), static_cast<int64_t>(workspace.size / 4 + 1), 10);
      workspace.data = bytes.get();
      if (in_c) {
        rmsnorm_backward_params_t params = RMSNORM_BACKWARD_PARAMS_INIT;
        params.rows = kRows, params.groups = kGroups, params.cols = kCols;
        params.eps = 1e-3, params.weight_offset = 1, params.flags = RMSNORM_FLAG_ACCUMULATE;
        params.dy = c_input(dy, kRowStride, kGroupStride);
        params.x = c_input(x, kRowStride, kGroupStride);
        params.weight = c_input(weight, 0, 0);
        params.rstd = c_input(rstd, kGroups, 1);
        params.dresidual_out = c_input(dh, kRowStride, kGroupStride);
        params.dx = c_output(dx_memory, kRowStride, kGroupStride);
        params.dresidual = c_output(dresidual_memory, kRowStride, kGroupStride);
        params.dweight = c_output(dweight_memory, 0, 0);
        params.dbias = c_output(dbias_memory, 0, 0);
        ASSERT_EQ(rmsnorm_backward(context_.get(), &params, workspace.data, workspace.size,
                                   device().stream()),
                  0);
      } else {
        status = rmsnorm::backward(context_, args, workspace, device().stream());
        ASSERT_TRUE(status.ok()) << status.text();
      }
      dx[in_c] = dx_memory.read(), dresidual[in_c] = dresidual_memory.read();
      dweight[in_c] = dweight_memory.read(), dbias[in_c] = dbias_memory.read();
    }
    EXPECT_EQ(dx[0], dx[1]);
    EXPECT_EQ(dresidual[0], dresidual[1]);
    EXPECT_EQ(dweight[0], dweight[1]);
    EXPECT_EQ(dbias[0], dbias[1]);
  }

  template <class T>
  void glu_gives_the_bits_of_c() {
    const Memory<T> gate(device(), kElements, 1), up(device(), kElements, 2);
    const Memory<T> dy(device(), kElements, 3);
    std::vector<typename View<T>::Element> y[2], dgate[2], dup[2];
    for (const bool in_c : {true, false}) {
      Memory<T> y_memory(device(), kElements, 4), dgate_memory(device(), kElements, 5);
      Memory<T> dup_memory(device(), kElements, 6);
      rmsnorm::GluForward forward;
      forward.gate = rows_view(gate), forward.up = rows_view(up), forward.y = rows_view(y_memory);
      forward.activation = RMSNORM_ACTIVATION_GELU_ERF;
      rmsnorm::GluBackward backward;
      backward.gate = rows_view(gate), backward.up = rows_view(up), backward.dy = rows_view(dy);
      backward.dgate = rows_view(dgate_memory), backward.dup = rows_view(dup_memory);
      backward.activation = RMSNORM_ACTIVATION_GELU_TANH;
      rmsnorm::Workspace workspaces[2];
      Status status = rmsnorm::glu_forward_workspace_size(context_, forward, &workspaces[0].size);
      ASSERT_TRUE(status.ok()) << status.text();
      status = rmsnorm::glu_backward_workspace_size(context_, backward, &workspaces[1].size);
      ASSERT_TRUE(status.ok()) << status.text();
      const Memory<float> first(device(), static_cast<int64_t>(workspaces[0].size / 4 + 1), 7);
      const Memory<float> second(device(), static_cast<int64_t>(workspaces[1].size / 4 + 1), 8);
      workspaces[0].data = first.get(), workspaces[1].data = second.get();
      if (in_c) {
        rmsnorm_glu_forward_params_t params = RMSNORM_GLU_FORWARD_PARAMS_INIT;
        params.rows = kRows, params.groups = kGroups, params.cols = kCols;
        params.activation = RMSNORM_ACTIVATION_GELU_ERF;
        params.gate = c_input(gate, kRowStride, kGroupStride);
        params.up = c_input(up, kRowStride, kGroupStride);
        params.y = c_output(y_memory, kRowStride, kGroupStride);
        ASSERT_EQ(rmsnorm_glu_forward(context_.get(), &params, workspaces[0].data,
                                      workspaces[0].size, device().stream()),
                  0);
        rmsnorm_glu_backward_params_t gradients = RMSNORM_GLU_BACKWARD_PARAMS_INIT;
        gradients.rows = kRows, gradients.groups = kGroups, gradients.cols = kCols;
        gradients.activation = RMSNORM_ACTIVATION_GELU_TANH;
        gradients.dy = c_input(dy, kRowStride, kGroupStride);
        gradients.gate = params.gate, gradients.up = params.up;
        gradients.dgate = c_output(dgate_memory, kRowStride, kGroupStride);
        gradients.dup = c_output(dup_memory, kRowStride, kGroupStride);
        ASSERT_EQ(rmsnorm_glu_backward(context_.get(), &gradients, workspaces[1].data,
                                       workspaces[1].size, device().stream()),
                  0);
      } else {
        status = rmsnorm::glu_forward(context_, forward, workspaces[0], device().stream());
        ASSERT_TRUE(status.ok()) << status.text();
        status = rmsnorm::glu_backward(context_, backward, workspaces[1], device().stream());
        ASSERT_TRUE(status.ok()) << status.text();
      }
      y[in_c] = y_memory.read(), dgate[in_c] = dgate_memory.read();
      dup[in_c] = dup_memory.read();
    }
    EXPECT_EQ(y[0], y[1]);
    EXPECT_EQ(dgate[0], dgate[1]);
    EXPECT_EQ(dup[0], dup[1]);
  }

  rmsnorm::Context context_;
};

TEST_P(CppLayerOf, ForwardGivesTheBitsOfC) {
  forward_gives_the_bits_of_c<float>();
  forward_gives_the_bits_of_c<double>();
  forward_gives_the_bits_of_c<Float16>();
  forward_gives_the_bits_of_c<BFloat16>();
}

TEST_P(CppLayerOf, BackwardGivesTheBitsOfC) {
  backward_gives_the_bits_of_c<float>();
  backward_gives_the_bits_of_c<double>();
  backward_gives_the_bits_of_c<Float16>();
  backward_gives_the_bits_of_c<BFloat16>();
}

TEST_P(CppLayerOf, GluGivesTheBitsOfC) {
  glu_gives_the_bits_of_c<float>();
  glu_gives_the_bits_of_c<double>();
  glu_gives_the_bits_of_c<Float16>();
  glu_gives_the_bits_of_c<BFloat16>();
}

TEST_P(CppLayerOf, NamesOfKernels) {
  const Memory<float> memory(device(), 8, 1);
  char name[RMSNORM_KERNEL_NAME_SIZE] = "";
  rmsnorm::Forward forward;
  forward.x = matrix(memory.get(), 2, 4), forward.y = matrix(memory.get(), 2, 4);
  Status status = rmsnorm::forward_kernel_name(context_, forward, name, sizeof name);
  EXPECT_TRUE(status.ok() && name[0] != '\0') << status.text();
  rmsnorm::Backward backward;
  backward.x = backward.dy = matrix(memory.get(), 2, 4);
  backward.dx = matrix(memory.get(), 2, 4);
  status = rmsnorm::backward_kernel_name(context_, backward, name, 1);
  EXPECT_EQ(status.code(), RMSNORM_ERROR_VALUE);
  rmsnorm::GluForward glu_forward;
  glu_forward.gate = glu_forward.up = backward.x, glu_forward.y = backward.dx;
  status = rmsnorm::glu_forward_kernel_name(context_, glu_forward, name, sizeof name);
  EXPECT_TRUE(status.ok()) << status.text();
  rmsnorm::GluBackward glu_backward;
  glu_backward.dy = glu_backward.gate = glu_backward.up = backward.x;
  glu_backward.dup = backward.dx;
  status = rmsnorm::glu_backward_kernel_name(context_, glu_backward, name, sizeof name);
  EXPECT_TRUE(status.ok()) << status.text();
}

INSTANTIATE_TEST_SUITE_P(, CppLayerOf, testing::ValuesIn(kBackends), BackendName());

// ---- Refusals
// ------------------------------------------------------------------------------------

using Floats = std::vector<float>;

// Every tensor of both operations in containers of exactly its size.
struct Fitting {
  Floats rows = Floats(24, 1), y = Floats(24, 7), h = Floats(24, 7), rstd = Floats(6, 7);
  Floats weight = Floats(4, 1), dweight = Floats(4, 7), dbias = Floats(4, 7);
  rmsnorm::Context context;
  rmsnorm::Forward forward;
  rmsnorm::Backward backward;
  rmsnorm::GluForward glu_forward;
  rmsnorm::GluBackward glu_backward;

  Fitting() {
    const Status status = rmsnorm::Context::create({}, &context);
    EXPECT_TRUE(status.ok()) << status.text();
    forward.x = forward.residual = tensor(rows, 2, 3, 4);
    forward.weight = forward.bias = rmsnorm::vector(weight, 4);
    forward.y = tensor(y, 2, 3, 4), forward.residual_out = tensor(h, 2, 3, 4);
    forward.rstd = tensor(rstd, 2, 3, 1);
    backward.dy = backward.x = backward.dresidual_out = tensor(rows, 2, 3, 4);
    backward.weight = rmsnorm::vector(weight, 4), backward.rstd = tensor(rstd, 2, 3, 1);
    backward.dx = tensor(y, 2, 3, 4), backward.dresidual = tensor(h, 2, 3, 4);
    backward.dweight = rmsnorm::vector(dweight, 4), backward.dbias = rmsnorm::vector(dbias, 4);
    glu_forward.gate = glu_forward.up = forward.x, glu_forward.y = forward.y;
    glu_backward.dy = glu_backward.gate = glu_backward.up = forward.x;
    glu_backward.dgate = forward.y, glu_backward.dup = forward.residual_out;
  }

  void expect_refused(const Status &status, rmsnorm_status_t code, const std::string &start) {
    EXPECT_EQ(status.code(), code) << status.text();
    EXPECT_EQ(std::string(status.text()).compare(0, start.size(), start), 0)
        << "\"" << status.text() << "\" does not begin with \"" << start << "\"";
    for (const Floats *output : {&y, &h, &rstd, &dweight, &dbias})
      EXPECT_EQ(*output, Floats(output->size(), 7)) << "a refused call has written";
  }
};

TEST(CppLayer, WhatFitsIsAccepted) {
  Fitting fitting;
  Status status = rmsnorm::forward(fitting.context, fitting.forward);
  EXPECT_TRUE(status.ok()) << status.text();
  rmsnorm::Workspace workspace;
  status = rmsnorm::backward_workspace_size(fitting.context, fitting.backward, &workspace.size);
  EXPECT_TRUE(status.ok()) << status.text();
  std::vector<char> bytes(workspace.size);
  workspace.data = bytes.data();
  status = rmsnorm::backward(fitting.context, fitting.backward, workspace);
  EXPECT_TRUE(status.ok()) << status.text();
}

// One argument after the other with a row, a group or a column too many, or one element too few.
template <class Args, class Tensor>
void expect_every_shape_checked(Tensor Args::*member, const std::string &name, Args Fitting::*args,
                                Status (*call)(Fitting *)) {
  const bool is_main = name == "x" || name == "gate";
  for (int edit = 0; edit < 4; ++edit) {
    Fitting fitting;
    Tensor &view = fitting.*args.*member;
    if (is_main && edit < 3) continue;
    if (edit == 0) ++view.rows;
    if (edit == 1) ++view.groups;
    if (edit == 2) ++view.cols;
    if (edit == 3) --view.size;
    fitting.expect_refused(call(&fitting), RMSNORM_ERROR_SHAPE,
                           name + (edit < 3 ? " is " : " of "));
  }
}

TEST(CppLayer, EveryShapeOfForwardIsChecked) {
  const auto call = [](Fitting *fitting) {
    return rmsnorm::forward(fitting->context, fitting->forward);
  };
  using Args = rmsnorm::Forward;
  expect_every_shape_checked(&Args::x, "x", &Fitting::forward, +call);
  expect_every_shape_checked(&Args::residual, "residual", &Fitting::forward, +call);
  expect_every_shape_checked(&Args::weight, "weight", &Fitting::forward, +call);
  expect_every_shape_checked(&Args::bias, "bias", &Fitting::forward, +call);
  expect_every_shape_checked(&Args::y, "y", &Fitting::forward, +call);
  expect_every_shape_checked(&Args::residual_out, "residual_out", &Fitting::forward, +call);
  expect_every_shape_checked(&Args::rstd, "rstd", &Fitting::forward, +call);
}

TEST(CppLayer, EveryShapeOfBackwardIsChecked) {
  const auto call = [](Fitting *fitting) {
    return rmsnorm::backward(fitting->context, fitting->backward);
  };
  using Args = rmsnorm::Backward;
  expect_every_shape_checked(&Args::dy, "dy", &Fitting::backward, +call);
  expect_every_shape_checked(&Args::x, "x", &Fitting::backward, +call);
  expect_every_shape_checked(&Args::weight, "weight", &Fitting::backward, +call);
  expect_every_shape_checked(&Args::rstd, "rstd", &Fitting::backward, +call);
  expect_every_shape_checked(&Args::dresidual_out, "dresidual_out", &Fitting::backward, +call);
  expect_every_shape_checked(&Args::dx, "dx", &Fitting::backward, +call);
  expect_every_shape_checked(&Args::dresidual, "dresidual", &Fitting::backward, +call);
  expect_every_shape_checked(&Args::dweight, "dweight", &Fitting::backward, +call);
  expect_every_shape_checked(&Args::dbias, "dbias", &Fitting::backward, +call);
}

TEST(CppLayer, EveryShapeOfGluIsChecked) {
  const auto forward = [](Fitting *fitting) {
    return rmsnorm::glu_forward(fitting->context, fitting->glu_forward);
  };
  using Forward = rmsnorm::GluForward;
  expect_every_shape_checked(&Forward::gate, "gate", &Fitting::glu_forward, +forward);
  expect_every_shape_checked(&Forward::up, "up", &Fitting::glu_forward, +forward);
  expect_every_shape_checked(&Forward::y, "y", &Fitting::glu_forward, +forward);
  const auto backward = [](Fitting *fitting) {
    return rmsnorm::glu_backward(fitting->context, fitting->glu_backward);
  };
  using Backward = rmsnorm::GluBackward;
  expect_every_shape_checked(&Backward::dy, "dy", &Fitting::glu_backward, +backward);
  expect_every_shape_checked(&Backward::gate, "gate", &Fitting::glu_backward, +backward);
  expect_every_shape_checked(&Backward::up, "up", &Fitting::glu_backward, +backward);
  expect_every_shape_checked(&Backward::dgate, "dgate", &Fitting::glu_backward, +backward);
  expect_every_shape_checked(&Backward::dup, "dup", &Fitting::glu_backward, +backward);
}

TEST(CppLayer, StridesStayInsideTheContainer) {
  struct Row {
    int64_t row_stride, group_stride;
    bool fits;
  };
  constexpr int64_t kMost = INT64_MAX;
  for (const Row &row :
       {Row{12, 4, true}, Row{0, 0, true}, Row{4, 8, true}, Row{13, 4, false}, Row{12, 5, false},
        Row{-1, 4, false}, Row{12, -4, false}, Row{kMost, 4, false}, Row{12, kMost, false},
        Row{kMost, kMost / 2, false}, Row{-kMost, -kMost / 2, false}, Row{kMost - 1, 1, false}}) {
    Fitting fitting;
    fitting.forward.x = tensor(fitting.rows, 2, 3, 4, row.row_stride, row.group_stride);
    const Status status = rmsnorm::forward(fitting.context, fitting.forward);
    if (row.fits) EXPECT_TRUE(status.ok()) << status.text();
    else fitting.expect_refused(status, RMSNORM_ERROR_SHAPE, "x of 2 x 3 x 4, row_stride ");
  }
}

TEST(CppLayer, AnyKindOfContainer) {
  const Floats x(8, 3);
  std::array<float, 4> weight = {1, 1, 2, 2};
  float y[8];
  rmsnorm::Context context;
  Status status = rmsnorm::Context::create({}, &context);
  ASSERT_TRUE(status.ok()) << status.text();
  rmsnorm::Forward args;
  args.eps = 0;
  args.x = matrix(x, 2, 4), args.weight = rmsnorm::vector(weight, 4), args.y = matrix(y, 2, 4);
  status = rmsnorm::forward(context, args);
  ASSERT_TRUE(status.ok()) << status.text();
  for (int i = 0; i < 8; ++i) EXPECT_EQ(y[i], weight[static_cast<size_t>(i % 4)]);
  args.y = matrix(&y[0], 2, 4);
  args.x = matrix(x.data(), 2, 4, 0);
  EXPECT_TRUE(rmsnorm::forward(context, args).ok());
}

TEST(CppLayer, WhatTheLibraryRefusesIsPassedOn) {
  Fitting fitting;
  fitting.forward.residual_out = fitting.forward.y;
  fitting.expect_refused(rmsnorm::forward(fitting.context, fitting.forward), RMSNORM_ERROR_ALIAS,
                         "");
  Fitting another;
  another.forward.eps = -1;
  another.expect_refused(rmsnorm::forward(another.context, another.forward), RMSNORM_ERROR_VALUE,
                         "eps = -1");
  const rmsnorm::Context none;
  another.expect_refused(rmsnorm::forward(none, Fitting().forward), RMSNORM_ERROR_NULL,
                         "context is NULL");
  another.expect_refused(rmsnorm::forward(another.context, {}), RMSNORM_ERROR_NULL, "x is absent");
}

// ---- What it owns
// --------------------------------------------------------------------------------

TEST(CppLayer, StatusKeepsItsText) {
  const Status success;
  EXPECT_TRUE(success.ok());
  EXPECT_STREQ(success.text(), "");
  EXPECT_STREQ(success.name(), "RMSNORM_SUCCESS");
  Fitting fitting;
  fitting.forward.eps = -1;
  const Status status = rmsnorm::forward(fitting.context, fitting.forward);
  EXPECT_FALSE(rmsnorm::device_count(7, nullptr).ok());  // another failure, another text
  EXPECT_STREQ(status.name(), "RMSNORM_ERROR_VALUE");
  std::string elsewhere;
  std::thread([&] { elsewhere = status.text(); }).join();
  EXPECT_EQ(elsewhere.compare(0, 8, "eps = -1"), 0) << elsewhere;
}

TEST(CppLayer, ContextsMove) {
  rmsnorm::Context a, b;
  ASSERT_TRUE(rmsnorm::Context::create({}, &a).ok());
  const rmsnorm_context_t *const handle = a.get();
  ASSERT_NE(handle, nullptr);
  b = std::move(a);
  EXPECT_EQ(a.get(), nullptr);
  EXPECT_EQ(b.get(), handle);
  rmsnorm::Context &same = b;
  b = std::move(same);
  EXPECT_EQ(b.get(), handle);
  rmsnorm::Context c(std::move(b));
  EXPECT_EQ(c.get(), handle);
  rmsnorm::ContextOptions options;
  options.cpu_threads = -1;
  EXPECT_EQ(rmsnorm::Context::create(options, &c).code(), RMSNORM_ERROR_VALUE);
  EXPECT_EQ(c.get(), handle) << "a failed create took the old context away";
  ASSERT_TRUE(rmsnorm::Context::create({}, &c).ok());
  rmsnorm_context_destroy(c.release());
  EXPECT_EQ(c.get(), nullptr);
}

TEST(CppLayer, Callables) {
  std::string lines;
  const auto write = [&](const char *line) { lines += line; };
  int64_t tasks = 0;
  int32_t answer = 0;
  auto run = [&](int64_t count, const auto &task) {
    for (int64_t i = count; i-- > 0;) task(i);
    tasks += count;
    return answer;
  };
  rmsnorm::ContextOptions options;
  options.set_parallel_for(&run);
  options.set_log(&write);
  rmsnorm::Context context, plain;
  ASSERT_TRUE(rmsnorm::Context::create(options, &context).ok());
  ASSERT_TRUE(rmsnorm::Context::create({}, &plain).ok());
  constexpr int64_t kMany = 4096;
  const Floats x(kMany * 64, 1.5);
  Floats y[2] = {Floats(x.size()), Floats(x.size())};
  rmsnorm::Forward args;
  args.x = matrix(x, kMany, 64);
  args.y = matrix(y[0], kMany, 64);
  Status status = rmsnorm::forward(context, args);
  ASSERT_TRUE(status.ok()) << status.text();
  args.y = matrix(y[1], kMany, 64);
  ASSERT_TRUE(rmsnorm::forward(plain, args).ok());
  EXPECT_EQ(y[0], y[1]);
  EXPECT_GT(tasks, 1);
  EXPECT_NE(lines.find("rows=4096"), std::string::npos) << lines;
  answer = 5;
  EXPECT_EQ(rmsnorm::forward(context, args).code(), RMSNORM_ERROR_CALLBACK);
}

TEST(CppLayer, Devices) {
  int32_t count = 0;
  ASSERT_TRUE(rmsnorm::device_count(RMSNORM_DEVICE_CPU, &count).ok());
  EXPECT_EQ(count, 1);
  rmsnorm_device_info_t info;
  ASSERT_TRUE(rmsnorm::device_info(RMSNORM_DEVICE_CPU, 0, &info).ok());
  EXPECT_EQ(info.supported, 1);
  EXPECT_EQ(rmsnorm::device_info(RMSNORM_DEVICE_CPU, 3, &info).code(), RMSNORM_ERROR_DEVICE);
}

}  // namespace
}  // namespace rmsnorm_test
