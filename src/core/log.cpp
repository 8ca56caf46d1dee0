#include "core/log.h"

#include <cstdarg>
#include <cstdio>

namespace rmsnorm {
namespace {

class Line {
 public:
  __attribute__((format(printf, 2, 3))) void add(const char *format, ...) {
    if (length_ >= sizeof text_) return;
    va_list arguments;
    va_start(arguments, format);
    const int written = std::vsnprintf(text_ + length_, sizeof text_ - length_, format, arguments);
    va_end(arguments);
    if (written > 0) length_ += static_cast<size_t>(written);
  }
  const char *text() const { return text_; }

 private:
  char text_[1536] = "";  // nine tensors of at most 100 characters, and the head
  size_t length_ = 0;
};

void add_head(Line *line, const char *name, const rmsnorm_context_t &context,
              const Problem &problem) {
  line->add("op=%s device=%s:%d rows=%lld groups=%lld cols=%lld", name, context.backend->name,
            (int)context.ordinal, (long long)problem.rows, (long long)problem.groups,
            (long long)problem.cols);
}

void add_scalars(Line *line, const NormProblem &problem) {
  line->add(" eps=%.17g weight_offset=%.17g overlap=%d", problem.eps, problem.weight_offset,
            problem.overlap ? 1 : 0);
}

void add_scalars(Line *line, const GluProblem &problem) {
  line->add(" activation=%s overlap=%d", activation_name(problem.activation),
            problem.overlap ? 1 : 0);
}

// name=dtype:row_stride:group_stride:alignment, and @other where it starts where another tensor
// does.
template <class Problem, size_t kCount>
void add_tensors(Line *line, const Tensor<Problem> (&table)[kCount], const Problem &problem) {
  for (size_t i = 0; i < kCount; ++i) {
    const View &view = problem.*table[i].view;
    if (!view.present()) continue;
    line->add(" %s=%s:%lld:%lld:%u", table[i].name, dtype_name(view.dtype),
              (long long)view.row_stride, (long long)view.group_stride,
              (unsigned)(reinterpret_cast<uintptr_t>(view.data) % 256));
    for (size_t j = 0; j < i; ++j)
      if ((problem.*table[j].view).present() && (problem.*table[j].view).data == view.data) {
        line->add("@%s", table[j].name);
        break;
      }
  }
}

template <class Problem, size_t kCount>
void send(Line *line, const rmsnorm_context_t &context, const Tensor<Problem> (&table)[kCount],
          const Problem &problem) {
  add_tensors(line, table, problem);
  char name[RMSNORM_KERNEL_NAME_SIZE];
  operation(*context.backend, problem).kernel_name(context.state, problem, name);
  line->add(" kernel=%s", name);
  context.log(context.log_user, line->text());
}

}  // namespace

void log_call(const rmsnorm_context_t &context, const ForwardProblem &problem) {
  Line line;
  add_head(&line, "forward", context, problem);
  add_scalars(&line, problem);
  line.add(" rounding=%s", problem.llama ? "llama" : "once");
  send(&line, context, kForwardTensors, problem);
}

void log_call(const rmsnorm_context_t &context, const BackwardProblem &problem) {
  Line line;
  add_head(&line, "backward", context, problem);
  add_scalars(&line, problem);
  line.add(" accumulate=%d", problem.accumulate ? 1 : 0);
  send(&line, context, kBackwardTensors, problem);
}

void log_call(const rmsnorm_context_t &context, const GluForwardProblem &problem) {
  Line line;
  add_head(&line, "glu_forward", context, problem);
  add_scalars(&line, problem);
  send(&line, context, kGluForwardTensors, problem);
}

void log_call(const rmsnorm_context_t &context, const GluBackwardProblem &problem) {
  Line line;
  add_head(&line, "glu_backward", context, problem);
  add_scalars(&line, problem);
  send(&line, context, kGluBackwardTensors, problem);
}

}  // namespace rmsnorm
