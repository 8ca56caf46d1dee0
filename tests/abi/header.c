/* Compiled as C and as C++ of every standard, with every warning an error and no CUDA header in
 * reach: the header included twice, each _INIT macro used as people use it. */
#include "rmsnorm.h"
#include "rmsnorm.h"

#define USE(name, type, init) \
  type name(void);            \
  type name(void) {           \
    type value = init;        \
    return value;             \
  }
USE(init_tensor, rmsnorm_tensor_t, RMSNORM_TENSOR_INIT)
USE(init_input, rmsnorm_input_t, RMSNORM_INPUT_INIT)
USE(init_info, rmsnorm_device_info_t, RMSNORM_DEVICE_INFO_INIT)
USE(init_options, rmsnorm_context_options_t, RMSNORM_CONTEXT_OPTIONS_INIT)
USE(init_forward, rmsnorm_forward_params_t, RMSNORM_FORWARD_PARAMS_INIT)
USE(init_backward, rmsnorm_backward_params_t, RMSNORM_BACKWARD_PARAMS_INIT)
USE(init_glu_forward, rmsnorm_glu_forward_params_t, RMSNORM_GLU_FORWARD_PARAMS_INIT)
USE(init_glu_backward, rmsnorm_glu_backward_params_t, RMSNORM_GLU_BACKWARD_PARAMS_INIT)

int calls(void);
int calls(void) {
  rmsnorm_context_t *context = NULL;
  rmsnorm_status_t status = rmsnorm_context_create(NULL, &context);
  rmsnorm_forward_params_t params = RMSNORM_FORWARD_PARAMS_INIT;
  params.rows = 1;
  if (status == RMSNORM_SUCCESS) status = rmsnorm_forward(context, &params, NULL, 0, NULL);
  rmsnorm_context_destroy(context);
  return status == RMSNORM_SUCCESS && rmsnorm_abi_version() == RMSNORM_ABI_VERSION;
}
