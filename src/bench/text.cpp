#include "bench/text.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "rmsnorm.h"

namespace bench {
namespace {

std::string print_list(const char *format, va_list arguments) {
  va_list again;
  va_copy(again, arguments);
  const int length = std::vsnprintf(nullptr, 0, format, arguments);
  std::string text(length > 0 ? static_cast<size_t>(length) : 0, '\0');
  std::vsnprintf(&text[0], text.size() + 1, format, again);
  va_end(again);
  return text;
}

}  // namespace

void fail(int code, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::string text = print_list(format, arguments);
  va_end(arguments);
  for (char &letter : text)  // a user's argument may hold a newline; the error stays one line
    if (letter == '\n' || letter == '\r') letter = ' ';
  std::fprintf(stderr, "rmsnorm-bench: %s\n", text.c_str());
  std::exit(code);
}

std::string print(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const std::string text = print_list(format, arguments);
  va_end(arguments);
  return text;
}

std::string library_error(int status) {
  std::vector<char> text(rmsnorm_last_error(nullptr, 0) + 1);
  rmsnorm_last_error(text.data(), text.size());
  return std::string(rmsnorm_status_name(status)) + ": " + text.data();
}

std::string readable_bytes(double bytes) {
  const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB"};
  size_t unit = 0;
  for (; bytes >= 1024 && unit < 5; ++unit) bytes /= 1024;
  return print(unit == 0 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
}

}  // namespace bench
