// Operations whose elements stand alone have no need of rows: a shape of as few dimensions as the
// strides allow.
#pragma once

#include "core/problem.h"

namespace rmsnorm {

// The same elements as rows of one group where, in every tensor, one stride leads through the
// groups of all rows; and as one row where those rows have no gaps. All tensors of the table are
// tensors of elements; absent ones are passed over.
template <class Problem, size_t kCount>
Problem folded(Problem problem, const Tensor<Problem> (&table)[kCount]) {
  const auto all = [&](auto test) {
    for (const Tensor<Problem> &tensor : table) {
      const View &view = problem.*tensor.view;
      if (view.present() && !test(view)) return false;
    }
    return true;
  };
  const auto follow = [&](const View &view) {
    return view.row_stride == problem.groups * view.group_stride;
  };
  const auto dense = [&](const View &view) { return view.row_stride == problem.cols; };
  if (problem.groups > 1 && (problem.rows == 1 || all(follow))) {
    problem.rows *= problem.groups;
    problem.groups = 1;
    for (const Tensor<Problem> &tensor : table) {
      View &view = problem.*tensor.view;
      view.row_stride = view.group_stride;
      view.group_stride = 0;
    }
  }
  if (problem.groups == 1 && problem.rows > 1 && all(dense)) {
    problem.cols *= problem.rows;
    problem.rows = 1;
    for (const Tensor<Problem> &tensor : table) (problem.*tensor.view).row_stride = 0;
  }
  return problem;
}

}  // namespace rmsnorm
