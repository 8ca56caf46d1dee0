#include "cpu/pool.h"

#include <signal.h>
#include <unistd.h>

#include <cstdlib>

namespace rmsnorm::cpu {
namespace {

constexpr size_t kStackBytes = size_t{512} << 10;

int64_t idle_in(pid_t process) { return int64_t{process} * 2; }

}  // namespace

Pool *Pool::create(int threads) {
  const size_t others = static_cast<size_t>(threads - 1);
  void *const memory = std::calloc(1, sizeof(Pool) + others * sizeof(pthread_t));
  if (memory == nullptr) return nullptr;
  Pool *const pool = static_cast<Pool *>(memory);  // all of it may be zero but for this
  pool->threads_ = threads - 1;
  return pool;
}

void Pool::destroy(Pool *pool) {
  if (pool == nullptr) return;
  if (pool->owner_.load() == idle_in(getpid())) {  // else its threads are not in this process
    pthread_mutex_lock(&pool->mutex_);
    pool->stop_ = true;
    pthread_cond_broadcast(&pool->wake_);
    pthread_mutex_unlock(&pool->mutex_);
    for (int i = 0; i < pool->started_; ++i) pthread_join(pool->handles_[i], nullptr);
  }
  std::free(pool);
}

bool Pool::run(int64_t count, rmsnorm_task_t task, void *arg) {
  const int64_t idle = idle_in(getpid()), taken = idle + 1;
  int64_t before = owner_.load();
  do {
    if (before == taken) return false;
  } while (!owner_.compare_exchange_weak(before, taken));
  if (before != idle) start();

  pthread_mutex_lock(&mutex_);
  task_ = task, arg_ = arg, count_ = count;
  next_.store(0);
  ++job_;
  open_ = true;
  pthread_mutex_unlock(&mutex_);
  for (int64_t i = 0; i < started_ && i < count - 1; ++i) pthread_cond_signal(&wake_);
  work_through();
  pthread_mutex_lock(&mutex_);
  open_ = false;
  while (working_ > 0) pthread_cond_wait(&idle_, &mutex_);
  pthread_mutex_unlock(&mutex_);
  owner_.store(idle);
  return true;
}

// In a process that has no threads of the pool yet. As many as there can be: with none, the caller
// does everything.
void Pool::start() {
  pthread_mutex_init(&mutex_, nullptr);
  pthread_cond_init(&wake_, nullptr);
  pthread_cond_init(&idle_, nullptr);
  started_ = working_ = 0;
  job_ = 0;
  open_ = stop_ = false;
  pthread_attr_t attributes;
  if (pthread_attr_init(&attributes) != 0) return;
  pthread_attr_setstacksize(&attributes, kStackBytes);
  sigset_t all, before;  // signals are for the program's own threads
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  while (started_ < threads_ && pthread_create(&handles_[started_], &attributes, worker, this) == 0)
    ++started_;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_attr_destroy(&attributes);
}

void *Pool::worker(void *pool) {
  static_cast<Pool *>(pool)->work();
  return nullptr;
}

void Pool::work() {
  uint64_t seen = 0;
  pthread_mutex_lock(&mutex_);
  for (;;) {
    while (!stop_ && !(open_ && job_ != seen)) pthread_cond_wait(&wake_, &mutex_);
    if (stop_) break;
    seen = job_;
    ++working_;
    pthread_mutex_unlock(&mutex_);
    work_through();
    pthread_mutex_lock(&mutex_);
    if (--working_ == 0) pthread_cond_signal(&idle_);
  }
  pthread_mutex_unlock(&mutex_);
}

void Pool::work_through() {
  for (int64_t index = next_.fetch_add(1); index < count_; index = next_.fetch_add(1))
    task_(arg_, index);
}

}  // namespace rmsnorm::cpu
