#include "thread_pool.h"

#include <cstdint>

#if defined(__linux__)
#include <sched.h>
#endif

namespace nasb {
namespace {

constexpr int kSpins = 4000;  // some 50 to 150 microseconds: longer than the gap between two layers

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

int available_threads() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n ? static_cast<int>(n) : 1;
}

ThreadPool::ThreadPool(int threads) : ranges_(threads > 1 ? threads : 1) {
  for (int t = 1; t < threads; ++t) workers_.emplace_back([this, t] { worker(t); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(sleeping_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : workers_) thread.join();
}

void ThreadPool::drain(int thread) {
  const size_t count = ranges_.size();
  for (size_t i = 0; i < count; ++i) {
    Range& range = ranges_[(thread + i) % count];
    for (int item; (item = range.next.fetch_add(1)) < range.end;) (*work_)(item, thread);
  }
}

void ThreadPool::parallel(int count, const Work& work) {
  std::unique_lock<std::mutex> forking(forking_, std::try_to_lock);
  if (workers_.empty() || count <= 1 || !forking.owns_lock()) {
    for (int item = 0; item < count; ++item) work(item, 0);
    return;
  }
  work_ = &work;
  const int64_t n = static_cast<int64_t>(ranges_.size());
  for (int64_t t = 0; t < n; ++t) {
    ranges_[t].next = static_cast<int>(count * t / n);
    ranges_[t].end = static_cast<int>(count * (t + 1) / n);
  }
  open_ = true;
  ++epoch_;
  if (sleepers_ > 0) {
    {
      std::lock_guard<std::mutex> lock(sleeping_);
    }
    wake_.notify_all();
  }
  drain(0);
  // Whoever raised inside_ before this sees the job open and is waited for; whoever comes later sees it closed.
  open_ = false;
  for (int spins = 0; inside_ > 0; ++spins) {
    if (spins < kSpins)
      pause();
    else
      std::this_thread::yield();
  }
}

void ThreadPool::worker(int thread) {
  unsigned seen = 0;
  while (true) {
    for (int spins = 0; epoch_ == seen && !stop_ && spins < kSpins; ++spins) pause();
    if (epoch_ == seen && !stop_) {
      std::unique_lock<std::mutex> lock(sleeping_);
      ++sleepers_;
      wake_.wait(lock, [&] { return epoch_ != seen || stop_; });
      --sleepers_;
    }
    if (stop_) return;
    seen = epoch_;
    ++inside_;
    if (open_) drain(thread);
    --inside_;
  }
}

}  // namespace nasb
