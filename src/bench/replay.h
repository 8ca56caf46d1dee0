// A line of the library's log callback, read back into the call that it tells of.
#pragma once

#include <string>

#include "bench/call.h"

namespace bench {

struct Replay {
  Call call;
  rmsnorm_device_t device = RMSNORM_DEVICE_CPU;
  int32_t ordinal = 0;
  std::string kernel;  // that ran it then
};

// Every key that the library writes is needed, and no other is known: a line that lost or gained
// something would otherwise run as another call.
Replay read_replay(const std::string &line);

}  // namespace bench
