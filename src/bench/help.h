// The text of --help.
#pragma once

namespace bench {

extern const char *const kHelp;

}  // namespace bench
