// The log line of one call: key=value pairs that name everything needed to run the call again.
#pragma once

#include "core/context.h"

namespace rmsnorm {

void log_call(const rmsnorm_context_t &context, const ForwardProblem &problem);
void log_call(const rmsnorm_context_t &context, const BackwardProblem &problem);
void log_call(const rmsnorm_context_t &context, const GluForwardProblem &problem);
void log_call(const rmsnorm_context_t &context, const GluBackwardProblem &problem);

}  // namespace rmsnorm
