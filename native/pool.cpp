#include "pool.h"

#include <unistd.h>

#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace anabranch {
namespace {

constexpr int kSpins = 2000;  // some tens of microseconds: the pause between two operations

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Pool::Pool(int threads) : ranges_(static_cast<size_t>(threads)), process_(getpid()) {
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { serve(i); });
  } catch (...) {
    end();
    throw;
  }
}

Pool::~Pool() { end(); }

void Pool::end() {
  {
    std::lock_guard lock(sleep_mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

bool Pool::orphaned() const { return getpid() != process_; }

int64_t Pool::Range::take(bool back) {
  constexpr uint64_t kLast = uint64_t{1} << 32;
  uint64_t now = word.load();
  for (;;) {
    const uint64_t next = static_cast<uint32_t>(now), end = now >> 32;
    if (next >= end) return -1;
    if (word.compare_exchange_weak(now, back ? now - kLast : now + 1))
      return static_cast<int64_t>(back ? end - 1 : next);
  }
}

void Pool::run(int64_t chunks, Call call, const void* context) {
  call_ = call;
  context_ = context;
  done_ = 0;
  const auto count = static_cast<int64_t>(ranges_.size());
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = chunks * i / count, end = chunks * (i + 1) / count;
    ranges_[i].word = static_cast<uint64_t>(end) << 32 | static_cast<uint64_t>(begin);
  }
  ++jobs_;
  // Sequentially consistent: a thread about to sleep sees the job first. The child of a fork has
  // nobody to wake, and may have been made while the mutex was held.
  if (sleeping_ > 0 && !orphaned()) {
    { std::lock_guard lock(sleep_mutex_); }
    wake_.notify_all();
  }
  help(0);
  for (int spins = 0; done_.load(std::memory_order_acquire) < chunks; ++spins) {
    if (spins < kSpins) relax();
    else std::this_thread::yield();
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void Pool::help(int thread) {
  const size_t count = ranges_.size();
  for (size_t i = 0; i < count; ++i) {
    Range& range = ranges_[(static_cast<size_t>(thread) + i) % count];
    for (int64_t chunk; (chunk = range.take(i > 0)) >= 0;) {
      try {
        call_(context_, chunk, thread);
      } catch (...) {
        std::lock_guard lock(error_mutex_);
        if (!error_) error_ = std::current_exception();
      }
      done_.fetch_add(1, std::memory_order_release);
    }
  }
}

void Pool::serve(int thread) {
  for (uint64_t seen = 0; !stop_;) {
    const auto waiting = [&] { return jobs_.load() != seen; };
    for (int spins = 0; spins < kSpins && !waiting(); ++spins) relax();
    if (!waiting()) {
      std::unique_lock lock(sleep_mutex_);
      ++sleeping_;
      wake_.wait(lock, [&] { return stop_ || waiting(); });
      --sleeping_;
    }
    seen = jobs_.load();
    help(thread);
  }
}

}  // namespace anabranch
