#include "execution.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "reference/reference.h"

namespace rmsnorm_test {
namespace {

constexpr int64_t kWorkspaceGuard = 512;  // bytes on either side
constexpr int64_t kBoundary = 256;

// Bytes below and above the data of a tensor that its elements reach.
struct Reach {
  int64_t below = 0, above = 0;
};

Reach reach_of(const Case &c, Name name) {
  const int64_t rows = c.rows_of(name), groups = c.groups_of(name), cols = c.cols_of(name);
  Reach reach;
  if (rows == 0 || groups == 0 || cols == 0) return reach;
  const int64_t size = rmsnorm::element_size(c[name].dtype);
  reach.above = cols * size;
  const int64_t steps[] = {(rows - 1) * (rows > 1 ? c.resolved_row_stride(name) : 0) * size,
                           (groups - 1) * (groups > 1 ? c.resolved_group_stride(name) : 0) * size};
  for (const int64_t step : steps)
    (step < 0 ? reach.below : reach.above) += step < 0 ? -step : step;
  return reach;
}

Name root_of(const Case &c, Name name, int64_t *shift) {
  while (c[name].share != kNone) {
    *shift += c[name].shift;
    name = c[name].share;
  }
  return name;
}

bool is_present(const Case &c, Name name) { return takes(c.direction, name) && c.has(name); }

// Whether the call reads what stands there before.
bool is_read(const Case &c, Name name) {
  if (!is_output(c.direction, name)) return true;
  return info(name).extent == Extent::kVector && (c.flags & RMSNORM_FLAG_ACCUMULATE) != 0;
}

// Stores a number of a pattern. It need not be rounded well, but soon: most cases spend their time
// here.
void store_cut(double value, char *to, rmsnorm_dtype_t dtype) {
  if (dtype == RMSNORM_DTYPE_F64) {
    std::memcpy(to, &value, sizeof value);
    return;
  }
  const float narrow = static_cast<float>(value);
  uint32_t bits;
  std::memcpy(&bits, &narrow, sizeof bits);
  if (dtype == RMSNORM_DTYPE_F32) {
    std::memcpy(to, &bits, sizeof bits);
    return;
  }
  const float size = std::fabs(narrow);
  uint16_t half = static_cast<uint16_t>(bits >> 16);
  if (dtype == RMSNORM_DTYPE_F16) {
    if (!(size >= 0x1p-14f && size < 65504.0f)) return rmsnorm::reference::store(value, to, dtype);
    half =
        static_cast<uint16_t>((bits >> 16 & 0x8000) | (((bits & 0x7fffffff) >> 13) - (112 << 10)));
  }
  std::memcpy(to, &half, sizeof half);
}

}  // namespace

Execution::Execution(Device &device, const Case &c)
    : context(device.context()),
      params(c.direction),
      stream(device.stream()),
      device_(device),
      case_(c) {
  for (int i = 0; i < kNameCount; ++i) {
    const Name name = static_cast<Name>(i);
    if (is_present(case_, name) && case_[name].share == kNone) make_block(name);
  }
  for (int i = 0; i < kNameCount; ++i)
    if (is_present(case_, static_cast<Name>(i)) && is_read(case_, static_cast<Name>(i)))
      fill(static_cast<Name>(i));
  write_params();
}

Execution::~Execution() {
  for (Block &block : blocks_)
    if (block.memory != nullptr) device_.release(block.memory);
  if (workspace_block_ != nullptr) device_.release(workspace_block_);
}

// The block of `root` and of every tensor that stands in its memory.
void Execution::make_block(Name root) {
  const int index = static_cast<int>(blocks_.size());
  int64_t below = 0, above = 0;
  bool read = false;
  for (int i = 0; i < kNameCount; ++i) {
    const Name name = static_cast<Name>(i);
    int64_t shift = 0;
    if (!is_present(case_, name) || root_of(case_, name, &shift) != root) continue;
    const Reach reach = reach_of(case_, name);
    below = std::max(below, reach.below - shift);
    above = std::max(above, reach.above + shift);
    places_[name] = {index, shift};
    read = read || is_read(case_, name);
  }
  const bool fenced = case_.fence != Fence::kNone;
  const int64_t guard = fenced ? 0 : case_.guard;
  int64_t data = below + guard;
  if (!fenced) data = (data + kBoundary - 1) / kBoundary * kBoundary + case_[root].misalign;
  for (Place &place : places_)
    if (place.block == index) place.offset += data;
  // What is read stands in NaN, so that a stray load shows. An output starts as NaN or, so that it
  // shows where it stays unwritten and should be NaN, as small numbers.
  const uint8_t poison = read || case_.seed % 2 == 0 ? 0xff : 0xa5;
  Block block;
  block.before.assign(static_cast<size_t>(data + above + guard), poison);
  block.memory = device_.allocate(block.before.size(), case_.fence);
  EXPECT_NE(block.memory, nullptr) << "no memory for " << info(root).text << "\n" << case_;
  blocks_.push_back(std::move(block));
}

template <class Visit>
void Execution::each_row(Name name, Visit visit) const {
  for (int64_t row = 0; row < case_.rows_of(name); ++row)
    for (int64_t group = 0; group < case_.groups_of(name); ++group) visit(row, group);
}

char *Execution::element(Name name, int64_t row, int64_t group, int64_t col, bool after) const {
  const Place &place = places_[name];
  const Block &block = blocks_[static_cast<size_t>(place.block)];
  const int64_t index =
      row * case_.resolved_row_stride(name) + group * case_.resolved_group_stride(name) + col;
  const int64_t offset = place.offset + index * rmsnorm::element_size(case_[name].dtype);
  const std::vector<uint8_t> &bytes = after ? block.after : block.before;
  return const_cast<char *>(reinterpret_cast<const char *>(bytes.data())) + offset;
}

void Execution::fill(Name name) {
  const Spec &spec = case_[name];
  const int64_t size = rmsnorm::element_size(spec.dtype);
  each_row(name, [&](int64_t row, int64_t group) {
    char *to = element(name, row, group, 0, false);
    const uint64_t of_row = row_hash(case_.seed, name, row, group);
    for (int64_t col = 0; col < case_.cols_of(name); ++col, to += size)
      store_cut(pattern_value(spec, of_row, col), to, spec.dtype);
  });
}

void Execution::set(Name name, int64_t row, int64_t group, int64_t col, double value) {
  rmsnorm::reference::store(value, element(name, row, group, col, false), case_[name].dtype);
}

void Execution::set_row(Name name, int64_t row, int64_t group, double value) {
  for (int64_t col = 0; col < case_.cols_of(name); ++col) set(name, row, group, col, value);
}

void Execution::write_params() {
  for (int i = 0; i < kNameCount; ++i) {
    const Name name = static_cast<Name>(i);
    if (!is_present(case_, name)) continue;
    const Place &place = places_[name];
    void *memory = blocks_[static_cast<size_t>(place.block)].memory;
    const rmsnorm_tensor_t given = {static_cast<char *>(memory) + place.offset,
                                    case_.resolved_row_stride(name),
                                    case_.resolved_group_stride(name), case_[name].dtype, 0};
    std::memcpy(&params.tensor(name), &given, sizeof given);
  }
  params.edit_head([&](auto *head) {
    head->rows = case_.rows;
    head->groups = case_.groups;
    head->cols = case_.cols;
    head->flags = case_.flags;
  });
  params.edit_norm([&](auto *norm) {
    norm->eps = case_.eps;
    norm->weight_offset = case_.weight_offset;
    norm->rounding = case_.rounding;
  });
  params.edit_glu([&](auto *glu) { glu->activation = case_.activation; });
}

void Execution::upload() {
  for (Block &block : blocks_)
    device_.upload(block.memory, block.before.data(), block.before.size());
}

rmsnorm_status_t Execution::prepare_workspace() {
  workspace_needed_ = 0;
  const rmsnorm_status_t status = query_size(context, params, &workspace_needed_);
  if (status != RMSNORM_SUCCESS) return status;
  if (workspace_block_ != nullptr) device_.release(workspace_block_);
  workspace_block_ = nullptr;
  workspace = nullptr;
  workspace_size = workspace_needed_ + workspace_extra;
  if (workspace_size == 0) return RMSNORM_SUCCESS;
  workspace_block_size_ = workspace_size + 2 * kWorkspaceGuard + workspace_misalign;
  workspace_block_ = device_.allocate(workspace_block_size_);
  EXPECT_NE(workspace_block_, nullptr) << "no memory for a workspace of " << workspace_size;
  device_.fill(workspace_block_, workspace_poison, workspace_block_size_);
  workspace = static_cast<char *>(workspace_block_) + kWorkspaceGuard + workspace_misalign;
  return RMSNORM_SUCCESS;
}

rmsnorm_status_t Execution::launch(void *in_stream) {
  return rmsnorm_test::run(context, params, workspace, workspace_size, in_stream);
}

void Execution::download() {
  const std::string error = device_.synchronize();
  EXPECT_EQ(error, "") << case_;
  for (Block &block : blocks_) {
    block.after.resize(block.before.size());
    device_.download(block.after.data(), block.memory, block.after.size());
  }
}

rmsnorm_status_t Execution::run() {
  upload();
  rmsnorm_status_t status = prepare_workspace();
  if (status == RMSNORM_SUCCESS) status = launch();
  download();
  return status;
}

testing::AssertionResult Execution::compare_memory(bool outputs_too) const {
  for (size_t index = 0; index < blocks_.size(); ++index) {
    const Block &block = blocks_[index];
    std::vector<uint8_t> expected = block.before;
    for (int i = 0; i < kNameCount && !outputs_too; ++i) {
      const Name name = static_cast<Name>(i);
      if (!is_present(case_, name) || !is_output(case_.direction, name)) continue;
      if (places_[name].block != static_cast<int>(index)) continue;
      const size_t bytes =
          static_cast<size_t>(case_.cols_of(name) * rmsnorm::element_size(case_[name].dtype));
      each_row(name, [&](int64_t row, int64_t group) {
        const char *from = element(name, row, group, 0, true);
        const ptrdiff_t offset = from - reinterpret_cast<const char *>(block.after.data());
        std::memcpy(expected.data() + offset, from, bytes);
      });
    }
    if (expected.empty() || std::memcmp(expected.data(), block.after.data(), expected.size()) == 0)
      continue;
    const auto differs = std::mismatch(expected.begin(), expected.end(), block.after.begin());
    auto failure = testing::AssertionFailure();
    failure << "byte " << differs.first - expected.begin() << " of the memory of";
    for (int i = 0; i < kNameCount; ++i)
      if (is_present(case_, static_cast<Name>(i)) && places_[i].block == static_cast<int>(index))
        failure << " " << info(static_cast<Name>(i)).text << " (data at byte " << places_[i].offset
                << ")";
    return failure << " was written\n  " << case_;
  }
  if (workspace_block_ == nullptr || workspace == nullptr) return testing::AssertionSuccess();
  std::vector<uint8_t> guards(workspace_block_size_);
  device_.download(guards.data(), workspace_block_, guards.size());
  const size_t low = kWorkspaceGuard + workspace_misalign, high = low + workspace_needed_;
  for (size_t i = 0; i < guards.size(); ++i)
    if ((i < low || i >= high || outputs_too) &&
        guards[i] != static_cast<uint8_t>(workspace_poison))
      return testing::AssertionFailure()
             << "byte " << static_cast<int64_t>(i) - static_cast<int64_t>(low)
             << " of a workspace of " << workspace_needed_ << " bytes was written\n  " << case_;
  return testing::AssertionSuccess();
}

std::vector<uint8_t> Execution::row_bits(Name name, int64_t row, int64_t group) const {
  const char *from = element(name, row, group, 0, true);
  return {from, from + case_.cols_of(name) * rmsnorm::element_size(case_[name].dtype)};
}

std::vector<uint8_t> Execution::bits(Name name) const {
  const size_t bytes =
      static_cast<size_t>(case_.cols_of(name) * rmsnorm::element_size(case_[name].dtype));
  std::vector<uint8_t> gathered(bytes *
                                static_cast<size_t>(case_.rows_of(name) * case_.groups_of(name)));
  uint8_t *to = gathered.data();
  each_row(name, [&](int64_t row, int64_t group) {
    std::memcpy(to, element(name, row, group, 0, true), bytes);
    to += bytes;
  });
  return gathered;
}

double Execution::output(Name name, int64_t row, int64_t group, int64_t col) const {
  return rmsnorm::reference::load(element(name, row, group, col, true), case_[name].dtype);
}

double Execution::input(Name name, int64_t row, int64_t group, int64_t col) const {
  return rmsnorm::reference::load(element(name, row, group, col, false), case_[name].dtype);
}

rmsnorm::View Execution::view(Name name, bool after) const {
  rmsnorm::View seen;
  if (!is_present(case_, name)) return seen;
  seen.data = element(name, 0, 0, 0, after);
  seen.row_stride = case_.rows_of(name) > 1 ? case_.resolved_row_stride(name) : 0;
  seen.group_stride = case_.groups_of(name) > 1 ? case_.resolved_group_stride(name) : 0;
  seen.dtype = case_[name].dtype;
  return seen;
}

rmsnorm::ForwardProblem Execution::forward_problem() const {
  rmsnorm::ForwardProblem p;
  p.rows = case_.rows, p.groups = case_.group_count(), p.cols = case_.cols;
  p.eps = case_.eps, p.weight_offset = case_.weight_offset;
  p.llama = case_.rounding == RMSNORM_ROUNDING_LLAMA;
  p.h_dtype = case_.h_dtype();
  p.x = view(kX), p.residual = view(kResidual), p.weight = view(kWeight), p.bias = view(kBias);
  p.y = view(kY), p.residual_out = view(kResidualOut), p.rstd = view(kRstd);
  return p;
}

rmsnorm::BackwardProblem Execution::backward_problem() const {
  rmsnorm::BackwardProblem p;
  p.rows = case_.rows, p.groups = case_.group_count(), p.cols = case_.cols;
  p.eps = case_.eps, p.weight_offset = case_.weight_offset;
  p.accumulate = (case_.flags & RMSNORM_FLAG_ACCUMULATE) != 0;
  p.dy = view(kDy), p.x = view(kX), p.weight = view(kWeight), p.rstd = view(kRstd);
  p.dresidual_out = view(kDresidualOut), p.dx = view(kDx), p.dresidual = view(kDresidual);
  p.dweight = view(kDweight), p.dbias = view(kDbias);
  const Name sums = case_.has(kDweight) ? kDweight : kDbias;
  p.per_group = case_.has(sums) && p.groups > 1 && case_.resolved_group_stride(sums) != 0;
  return p;
}

rmsnorm::GluForwardProblem Execution::glu_forward_problem() const {
  rmsnorm::GluForwardProblem p;
  p.rows = case_.rows, p.groups = case_.group_count(), p.cols = case_.cols;
  p.activation = case_.activation;
  p.gate = view(kGate), p.up = view(kUp), p.y = view(kY);
  return p;
}

rmsnorm::GluBackwardProblem Execution::glu_backward_problem() const {
  rmsnorm::GluBackwardProblem p;
  p.rows = case_.rows, p.groups = case_.group_count(), p.cols = case_.cols;
  p.activation = case_.activation;
  p.dy = view(kDy), p.gate = view(kGate), p.up = view(kUp);
  p.dgate = view(kDgate), p.dup = view(kDup);
  return p;
}

std::string Execution::kernel_name() const {
  char name[RMSNORM_KERNEL_NAME_SIZE] = "";
  query_name(context, params, name, sizeof name);
  return name;
}

testing::AssertionResult same_bits(const Execution &a, const Execution &b, Name name) {
  const std::vector<uint8_t> of_a = a.bits(name), of_b = b.bits(name);
  if (of_a == of_b) return testing::AssertionSuccess();
  const size_t common = std::min(of_a.size(), of_b.size());
  const auto differs =
      std::mismatch(of_a.begin(), of_a.begin() + static_cast<ptrdiff_t>(common), of_b.begin());
  const int64_t at = differs.first - of_a.begin();
  return testing::AssertionFailure()
         << info(name).text << " differs at element "
         << at / rmsnorm::element_size(a.tested()[name].dtype) << " between\n  " << a.tested()
         << "\n  kernel " << a.kernel_name() << "\nand\n  " << b.tested() << "\n  kernel "
         << b.kernel_name();
}

testing::AssertionResult same_outputs(const Execution &a, const Execution &b) {
  for (int i = 0; i < kNameCount; ++i) {
    const Name name = static_cast<Name>(i);
    if (!is_output(a.tested().direction, name)) continue;
    if (!is_present(a.tested(), name) || !is_present(b.tested(), name)) continue;
    const testing::AssertionResult same = same_bits(a, b, name);
    if (!same) return same;
  }
  return testing::AssertionSuccess();
}

}  // namespace rmsnorm_test
