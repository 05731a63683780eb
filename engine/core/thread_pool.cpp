#include "thread_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace nasb {
namespace {

thread_local int most_active = 1;

constexpr int kSpins = 4000;  // some 50 to 150 microseconds: longer than the gap between two layers

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

long process() {
#if defined(__unix__) || defined(__APPLE__)
  return static_cast<long>(getpid());
#else
  return 0;
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

struct ThreadPool::Shared {
  struct alignas(64) Range {
    std::atomic<int> next{0};
    int end = 0;
  };

  explicit Shared(int threads) : ranges(threads) {}

  // Returns whether the thread got an item.
  bool drain(int thread) {
    const size_t count = ranges.size();
    bool any = false;
    for (size_t i = 0; i < count; ++i) {
      Range& range = ranges[(thread + i) % count];
      for (int item; (item = range.next.fetch_add(1)) < range.end; any = true) (*work)(item, thread);
    }
    return any;
  }

  void serve(int thread) {
    unsigned seen = 0;
    while (true) {
      for (int spins = 0; epoch == seen && !stop && spins < kSpins; ++spins) pause();
      if (epoch == seen && !stop) {
        std::unique_lock<std::mutex> lock(sleeping);
        ++sleepers;
        wake.wait(lock, [&] { return epoch != seen || stop; });
        --sleepers;
      }
      if (stop) return;
      seen = epoch;
      ++inside;
      if (open && drain(thread)) ++active;
      --inside;
    }
  }

  const long owner = process();
  std::vector<std::thread> workers;
  std::vector<Range> ranges;
  std::mutex forking;
  const Work* work = nullptr;
  std::atomic<bool> open{false};
  std::atomic<int> inside{0}, active{0};
  std::atomic<unsigned> epoch{0};
  std::atomic<bool> stop{false};
  std::atomic<int> sleepers{0};
  std::mutex sleeping;
  std::condition_variable wake;
};

ThreadPool::ThreadPool(int threads) {
  if (threads <= 1) return;
  shared_ = std::make_unique<Shared>(threads);
  Shared& s = *shared_;
  s.workers.reserve(threads - 1);
  try {
    for (int t = 1; t < threads; ++t) s.workers.emplace_back([&s, t] { s.serve(t); });
  } catch (const std::exception&) {
    // The others take over the ranges of those that could not be started.
  }
  threads_ = static_cast<int>(s.workers.size()) + 1;
}

ThreadPool::~ThreadPool() {
  if (!shared_) return;
  Shared& s = *shared_;
  if (process() != s.owner) {
    static_cast<void>(shared_.release());  // its threads stayed in the parent: there is nobody to join or to wake
    return;
  }
  {
    std::lock_guard<std::mutex> lock(s.sleeping);
    s.stop = true;
  }
  s.wake.notify_all();
  for (std::thread& thread : s.workers) thread.join();
}

void ThreadPool::parallel(int count, const Work& work) {
  const bool alone = threads_ == 1 || count <= 1 || process() != shared_->owner;
  std::unique_lock<std::mutex> forking;
  if (!alone) forking = std::unique_lock<std::mutex>(shared_->forking, std::try_to_lock);
  if (!forking.owns_lock()) {
    for (int item = 0; item < count; ++item) work(item, 0);
    return;
  }
  Shared& s = *shared_;
  s.work = &work;
  const int64_t n = static_cast<int64_t>(s.ranges.size());
  for (int64_t t = 0; t < n; ++t) {
    s.ranges[t].next = static_cast<int>(count * t / n);
    s.ranges[t].end = static_cast<int>(count * (t + 1) / n);
  }
  s.active = 0;
  s.open = true;
  ++s.epoch;
  if (s.sleepers > 0) {
    {
      std::lock_guard<std::mutex> lock(s.sleeping);
    }
    s.wake.notify_all();
  }
  if (s.drain(0)) ++s.active;
  // Whoever raised `inside` before this sees the work open and is waited for; whoever comes later sees it closed.
  s.open = false;
  for (int spins = 0; s.inside > 0; ++spins) {
    if (spins < kSpins)
      pause();
    else
      std::this_thread::yield();
  }
  most_active = std::max<int>(most_active, s.active);
}

int ThreadPool::take_most_active() { return std::exchange(most_active, 1); }

}  // namespace nasb
