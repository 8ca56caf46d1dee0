/* Put before librmsnorm with LD_PRELOAD: calls that say success and leave wrong results. Without
 * OFF they do nothing; with it, the last element of the result is a little off. */
#include <dlfcn.h>
#include <rmsnorm.h>

typedef rmsnorm_status_t forward_t(const rmsnorm_context_t *, const rmsnorm_forward_params_t *,
                                   void *, size_t, void *);
typedef rmsnorm_status_t backward_t(const rmsnorm_context_t *, const rmsnorm_backward_params_t *,
                                    void *, size_t, void *);

typedef rmsnorm_status_t glu_forward_t(const rmsnorm_context_t *,
                                       const rmsnorm_glu_forward_params_t *, void *, size_t,
                                       void *);
typedef rmsnorm_status_t glu_backward_t(const rmsnorm_context_t *,
                                        const rmsnorm_glu_backward_params_t *, void *, size_t,
                                        void *);

static void disturb(const rmsnorm_tensor_t *tensor, int64_t rows, int64_t cols) {
#ifdef OFF
  float *last = (float *)tensor->data + (rows - 1) * tensor->row_stride + cols - 1;
  *last *= 1 + 1e-6f;
#else
  (void)tensor, (void)rows, (void)cols;
#endif
}

rmsnorm_status_t rmsnorm_forward(const rmsnorm_context_t *context,
                                 const rmsnorm_forward_params_t *params, void *workspace,
                                 size_t size, void *stream) {
  rmsnorm_status_t status = RMSNORM_SUCCESS;
#ifdef OFF
  status =
      ((forward_t *)dlsym(RTLD_NEXT, "rmsnorm_forward"))(context, params, workspace, size, stream);
#else
  (void)context, (void)workspace, (void)size, (void)stream;
#endif
  disturb(&params->y, params->rows, params->cols);
  return status;
}

rmsnorm_status_t rmsnorm_backward(const rmsnorm_context_t *context,
                                  const rmsnorm_backward_params_t *params, void *workspace,
                                  size_t size, void *stream) {
  rmsnorm_status_t status = RMSNORM_SUCCESS;
#ifdef OFF
  status = ((backward_t *)dlsym(RTLD_NEXT, "rmsnorm_backward"))(context, params, workspace, size,
                                                                stream);
#else
  (void)context, (void)workspace, (void)size, (void)stream;
#endif
  disturb(&params->dweight, 1, params->cols);
  return status;
}

rmsnorm_status_t rmsnorm_glu_forward(const rmsnorm_context_t *context,
                                     const rmsnorm_glu_forward_params_t *params, void *workspace,
                                     size_t size, void *stream) {
  rmsnorm_status_t status = RMSNORM_SUCCESS;
#ifdef OFF
  status = ((glu_forward_t *)dlsym(RTLD_NEXT, "rmsnorm_glu_forward"))(context, params, workspace,
                                                                      size, stream);
#else
  (void)context, (void)workspace, (void)size, (void)stream;
#endif
  disturb(&params->y, params->rows, params->cols);
  return status;
}

rmsnorm_status_t rmsnorm_glu_backward(const rmsnorm_context_t *context,
                                      const rmsnorm_glu_backward_params_t *params, void *workspace,
                                      size_t size, void *stream) {
  rmsnorm_status_t status = RMSNORM_SUCCESS;
#ifdef OFF
  status = ((glu_backward_t *)dlsym(RTLD_NEXT, "rmsnorm_glu_backward"))(context, params, workspace,
                                                                        size, stream);
#else
  (void)context, (void)workspace, (void)size, (void)stream;
#endif
  disturb(&params->dup, params->rows, params->cols);
  return status;
}
