// One call of the library with memory that is watched: every tensor stands between guard bands in a
// block of poison, gaps between rows included. After the call each byte that is no output's element
// must be what it was.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "case.h"
#include "device.h"

namespace rmsnorm_test {

class Execution {
 public:
  Execution(Device &device, const Case &c);
  ~Execution();
  Execution(const Execution &) = delete;
  Execution &operator=(const Execution &) = delete;

  // Changes one element of the data that the call will find; before upload.
  void set(Name name, int64_t row, int64_t group, int64_t col, double value);
  void set_row(Name name, int64_t row, int64_t group, double value);

  // Uploads, asks for the workspace's size, launches, waits and downloads. The call's status.
  rmsnorm_status_t run();
  // The steps of run, for tests that do something between them.
  void upload();
  rmsnorm_status_t prepare_workspace();  // of the size that the query tells, full of NaN
  rmsnorm_status_t launch() { return launch(stream); }
  rmsnorm_status_t launch(void *in_stream);
  void download();

  // Nothing but the outputs' elements has changed; `outputs_too`: not even those.
  testing::AssertionResult nothing_else_written() const { return compare_memory(false); }
  testing::AssertionResult nothing_written() const { return compare_memory(true); }

  // After the call: an output's elements in order of (row, group, col), as bytes.
  std::vector<uint8_t> bits(Name name) const;
  std::vector<uint8_t> row_bits(Name name, int64_t row, int64_t group) const;
  double output(Name name, int64_t row, int64_t group, int64_t col) const;
  // Before the call.
  double input(Name name, int64_t row, int64_t group, int64_t col) const;
  // The tensors as they were before the call, for the reference.
  rmsnorm::ForwardProblem forward_problem() const;
  rmsnorm::BackwardProblem backward_problem() const;
  rmsnorm::GluForwardProblem glu_forward_problem() const;
  rmsnorm::GluBackwardProblem glu_backward_problem() const;
  // A tensor before the call, or after it.
  rmsnorm::View view(Name name, bool after) const;

  // The name that the library gives to the kernel, "" on failure.
  std::string kernel_name() const;
  size_t workspace_size_needed() const { return workspace_needed_; }
  const Case &tested() const { return case_; }
  Device &device() const { return device_; }

  // What launch passes: tests of refusals edit these.
  const rmsnorm_context_t *context;
  Params params;
  void *workspace = nullptr;
  size_t workspace_size = 0;
  void *stream;
  // How prepare_workspace lays it out.
  size_t workspace_extra = 0;
  size_t workspace_misalign = 0;
  int workspace_poison = 0xff;

 private:
  struct Block {
    std::vector<uint8_t> before, after;
    void *memory = nullptr;
  };
  struct Place {  // where a tensor's data is
    int block = -1;
    int64_t offset = 0;
  };

  void make_block(Name root);
  void fill(Name name);
  void write_params();
  char *element(Name name, int64_t row, int64_t group, int64_t col, bool after) const;
  rmsnorm::View view(Name name) const { return view(name, false); }
  template <class Visit>
  void each_row(Name name, Visit visit) const;  // visit(row, group)
  testing::AssertionResult compare_memory(bool outputs_too) const;

  Device &device_;
  Case case_;
  std::vector<Block> blocks_;
  Place places_[kNameCount];
  void *workspace_block_ = nullptr;
  size_t workspace_block_size_ = 0, workspace_needed_ = 0;
};

// Whether two executions left the same bits in an output.
testing::AssertionResult same_bits(const Execution &a, const Execution &b, Name name);
// The same for every output that both have.
testing::AssertionResult same_outputs(const Execution &a, const Execution &b);

}  // namespace rmsnorm_test
