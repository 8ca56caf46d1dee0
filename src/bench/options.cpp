#include "bench/options.h"

#include <getopt.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <set>

#include "bench/call.h"
#include "bench/help.h"
#include "bench/text.h"

namespace bench {
namespace {

constexpr int64_t kMostCount = int64_t{1} << 62;
constexpr int kMostPasses = 1000000;

enum LongOnly {
  kWeightDtype = 256,
  kActivation,
  kShapes,
  kCols,
  kGroups,
  kRowStride,
  kOverlap,
  kEps,
  kReplay,
  kDevice,
  kOrdinal,
  kThreads,
  kSets
};

const option kFlags[] = {{"op", required_argument, nullptr, 'o'},
                         {"dtype", required_argument, nullptr, 'd'},
                         {"activation", required_argument, nullptr, kActivation},
                         {"weight-dtype", required_argument, nullptr, kWeightDtype},
                         {"shapes", required_argument, nullptr, kShapes},
                         {"minbytes", required_argument, nullptr, 'b'},
                         {"maxbytes", required_argument, nullptr, 'e'},
                         {"factor", required_argument, nullptr, 'f'},
                         {"cols", required_argument, nullptr, kCols},
                         {"groups", required_argument, nullptr, kGroups},
                         {"row-stride", required_argument, nullptr, kRowStride},
                         {"misalign", required_argument, nullptr, 'u'},
                         {"overlap", no_argument, nullptr, kOverlap},
                         {"eps", required_argument, nullptr, kEps},
                         {"replay", required_argument, nullptr, kReplay},
                         {"device", required_argument, nullptr, kDevice},
                         {"ordinal", required_argument, nullptr, kOrdinal},
                         {"threads", required_argument, nullptr, kThreads},
                         {"sets", required_argument, nullptr, kSets},
                         {"check", required_argument, nullptr, 'c'},
                         {"iters", required_argument, nullptr, 'n'},
                         {"warmup", required_argument, nullptr, 'w'},
                         {"graph", required_argument, nullptr, 'G'},
                         {"host-time", no_argument, nullptr, 'C'},
                         {"json", required_argument, nullptr, 'J'},
                         {"help", no_argument, nullptr, 'h'},
                         {nullptr, 0, nullptr, 0}};
const char kShort[] = ":o:d:b:e:f:u:c:n:w:G:CJ:h";

std::string flag_name(int value) {
  for (const option &flag : kFlags)
    if (flag.name != nullptr && flag.val == value) return std::string("--") + flag.name;
  return print("-%c", value);
}

// 64K, 1M, 2G, 300.
int64_t read_bytes(const std::string &argument, const std::string &text) {
  int64_t unit = 1;
  std::string number = text;
  const size_t at = number.empty() ? 0 : std::string("KMG").find(number.back());
  if (!number.empty() && at != std::string::npos) {
    unit = int64_t{1} << (10 * (at + 1));
    number.pop_back();
  }
  int64_t bytes = 0;
  char *end = nullptr;
  errno = 0;
  const long long value = std::strtoll(number.c_str(), &end, 10);
  if (number.empty() || *end != '\0' || errno != 0 || value < 1 ||
      __builtin_mul_overflow(static_cast<int64_t>(value), unit, &bytes) || bytes > kMostCount)
    fail(kBadInput, "%s %s: a number of bytes from 1 on is wanted, such as 300, 64K, 1M or 2G",
         argument.c_str(), text.c_str());
  return bytes;
}

rmsnorm_dtype_t read_dtype(const std::string &argument, const std::string &text) {
  const rmsnorm_dtype_t dtype = find_dtype(text);
  if (dtype == RMSNORM_DTYPE_NONE)
    fail(kBadInput, "%s %s: there are f32, f16, bf16 and f64", argument.c_str(), text.c_str());
  return dtype;
}

std::vector<rmsnorm_dtype_t> read_dtypes(const std::string &argument, const std::string &text) {
  if (text == "all")
    return {RMSNORM_DTYPE_F32, RMSNORM_DTYPE_F16, RMSNORM_DTYPE_BF16, RMSNORM_DTYPE_F64};
  std::vector<rmsnorm_dtype_t> dtypes;
  for (const std::string &word : split(text, ',')) dtypes.push_back(read_dtype(argument, word));
  return dtypes;
}

std::vector<Op> read_ops(const std::string &argument, const std::string &text) {
  if (text == "all") return kAllOps;
  std::vector<Op> ops;
  for (const std::string &word : split(text, ',')) {
    if (word == "forward") ops.push_back(Op::kForward);
    else if (word == "add") ops.push_back(Op::kAdd);
    else if (word == "backward") ops.push_back(Op::kBackward);
    else if (word == "glu-forward") ops.push_back(Op::kGluForward);
    else if (word == "glu-backward") ops.push_back(Op::kGluBackward);
    else
      fail(kBadInput, "%s %s: there are forward, add, backward, glu-forward, glu-backward and all",
           argument.c_str(), word.c_str());
  }
  return ops;
}

std::vector<rmsnorm_activation_t> read_activations(const std::string &argument,
                                                   const std::string &text) {
  if (text == "all")
    return {RMSNORM_ACTIVATION_SILU, RMSNORM_ACTIVATION_GELU_TANH, RMSNORM_ACTIVATION_GELU_ERF};
  std::vector<rmsnorm_activation_t> activations;
  for (const std::string &word : split(text, ',')) {
    activations.push_back(find_activation(word));
    if (activations.back() < 0)
      fail(kBadInput, "%s %s: there are silu, gelu_tanh, gelu_erf and all", argument.c_str(),
           word.c_str());
  }
  return activations;
}

std::vector<Shape> read_shapes(const std::string &argument, const std::string &text) {
  std::vector<Shape> shapes;
  for (const std::string &word : split(text, ',')) {
    const std::vector<std::string> counts = split(word, 'x');
    if (counts.size() != 2)
      fail(kBadInput, "%s %s: '%s' is not ROWSxCOLS, such as 4096x1024", argument.c_str(),
           text.c_str(), word.c_str());
    shapes.push_back({read_integer(argument, counts[0], 1, kMostCount),
                      read_integer(argument, counts[1], 1, kMostCount)});
  }
  return shapes;
}

void read_flag(int flag, const std::string &value, Options *options) {
  const std::string name = flag_name(flag);
  switch (flag) {
    case 'o': options->ops = read_ops(name, value); break;
    case 'd': options->dtypes = read_dtypes(name, value); break;
    case kActivation: options->activations = read_activations(name, value); break;
    case kWeightDtype: options->weight_dtype = read_dtype(name, value); break;
    case kShapes: options->shapes = read_shapes(name, value); break;
    case 'b': options->min_bytes = read_bytes(name, value); break;
    case 'e': options->max_bytes = read_bytes(name, value); break;
    case 'f': options->factor = read_integer(name, value, 2, kMostCount); break;
    case kCols: options->cols = read_integer(name, value, 1, kMostCount); break;
    case kGroups: options->groups = read_integer(name, value, 1, kMostCount); break;
    case kRowStride: options->row_stride = read_integer(name, value, 1, kMostCount); break;
    case 'u': options->misalign = read_integer(name, value, 0, 4096); break;
    case kOverlap: options->overlap = true; break;
    case kEps:
      options->eps = read_real(name, value);
      if (options->eps < 0) fail(kBadInput, "%s %s: it is negative", name.c_str(), value.c_str());
      break;
    case kReplay:
      if (value.empty()) fail(kBadInput, "%s: the line is empty", name.c_str());
      options->replay = value;
      break;
    case kDevice:
      if (value != "cpu" && value != "cuda")
        fail(kBadInput, "%s %s: there are cpu and cuda", name.c_str(), value.c_str());
      options->device = value == "cpu" ? RMSNORM_DEVICE_CPU : RMSNORM_DEVICE_CUDA;
      break;
    case kOrdinal:
      options->ordinal = static_cast<int32_t>(read_integer(name, value, 0, INT32_MAX));
      break;
    case kThreads:
      options->threads = static_cast<int32_t>(read_integer(name, value, 0, 65536));
      break;
    case kSets: options->sets = read_integer(name, value, 1, 4096); break;
    case 'c': options->check = read_integer(name, value, 0, 1) != 0; break;
    case 'n':
      options->iterations = static_cast<int>(read_integer(name, value, 0, kMostPasses));
      break;
    case 'w': options->warmups = static_cast<int>(read_integer(name, value, 0, kMostPasses)); break;
    case 'G': options->graph = static_cast<int>(read_integer(name, value, 0, 1)); break;
    case 'C': options->host_time = true; break;
    case 'J':
      if (value.empty()) fail(kBadInput, "%s: the file's name is empty", name.c_str());
      options->json = value;
      break;
    default: std::fputs(kHelp, stdout); std::exit(0);
  }
}

// What each flag allows on its own, but not with another.
void check_together(const std::set<int> &given, Options *options) {
  const auto refuse = [&](std::initializer_list<int> flags, int with) {
    for (const int flag : flags)
      if (given.count(flag) != 0)
        fail(kBadInput, "%s does not go with %s", flag_name(flag).c_str(), flag_name(with).c_str());
  };
  if (!options->replay.empty())
    refuse({'o', 'd', kActivation, kWeightDtype, kShapes, 'b', 'e', 'f', kCols, kGroups, kRowStride,
            'u', kOverlap, kEps},
           kReplay);
  if (!options->shapes.empty()) refuse({'b', 'e', 'f', kCols}, kShapes);
  if (given.count('b') != 0 && given.count('e') == 0) options->max_bytes = options->min_bytes;
  if (given.count('e') != 0 && given.count('b') == 0 && options->max_bytes < options->min_bytes)
    options->min_bytes = options->max_bytes;
  if (options->min_bytes > options->max_bytes)
    fail(kBadInput, "--minbytes is more than --maxbytes");
  if (options->weight_dtype != RMSNORM_DTYPE_NONE)
    for (const rmsnorm_dtype_t dtype : options->dtypes)
      if ((dtype == RMSNORM_DTYPE_F64) != (options->weight_dtype == RMSNORM_DTYPE_F64))
        fail(kBadInput, "--weight-dtype %s does not go with --dtype %s: f64 goes with f64 alone",
             dtype_name(options->weight_dtype), dtype_name(dtype));
  if (options->iterations == 0 && !options->check && !options->host_time)
    fail(kBadInput, "--iters 0 with --check 0 leaves nothing to do");
}

}  // namespace

const std::vector<Op> kAllOps = {Op::kForward, Op::kAdd, Op::kBackward, Op::kGluForward,
                                 Op::kGluBackward};

std::vector<std::string> split(const std::string &text, char separator) {
  std::vector<std::string> words(1);
  for (const char letter : text) {
    if (letter == separator) words.emplace_back();
    else words.back() += letter;
  }
  return words;
}

int64_t read_integer(const std::string &argument, const std::string &text, int64_t least,
                     int64_t most) {
  char *end = nullptr;
  errno = 0;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  const bool digits = !text.empty() && text.find_first_not_of("-0123456789") == std::string::npos;
  if (!digits || *end != '\0' || errno != 0 || value < least || value > most) {
    const std::string range = most == kMostCount
                                  ? print("from %lld on", static_cast<long long>(least))
                                  : print("from %lld to %lld", static_cast<long long>(least),
                                          static_cast<long long>(most));
    fail(kBadInput, "%s %s: a whole number %s is wanted", argument.c_str(), text.c_str(),
         range.c_str());
  }
  return value;
}

double read_real(const std::string &argument, const std::string &text) {
  char *end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || text[0] == ' ' || *end != '\0' || !std::isfinite(value))
    fail(kBadInput, "%s %s: a finite number is wanted", argument.c_str(), text.c_str());
  return value;
}

Options read_options(int argc, char **argv) {
  Options options;
  std::set<int> given;
  opterr = 0;
  for (int flag; (flag = getopt_long(argc, argv, kShort, kFlags, nullptr)) != -1;) {
    const char *const word = argv[optind - 1];
    if (flag == '?' && optopt > 0 && optopt < 256)
      fail(kBadInput, "-%c is no flag, or takes no value (--help lists them)", optopt);
    if (flag == '?') fail(kBadInput, "%s is no flag, or takes no value (--help lists them)", word);
    if (flag == ':') fail(kBadInput, "%s wants a value", word);
    given.insert(flag);
    read_flag(flag, optarg == nullptr ? "" : optarg, &options);
  }
  if (optind < argc) fail(kBadInput, "%s: no such argument (--help lists the flags)", argv[optind]);
  check_together(given, &options);
  return options;
}

}  // namespace bench
