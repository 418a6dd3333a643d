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

Pool::Pool(int threads) : process_(getpid()) {
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

bool Pool::waiting() const {
  const uint64_t ticket = ticket_.load();
  return static_cast<uint32_t>(ticket) < ticket >> 32;
}

void Pool::run(int64_t chunks, Call call, const void* context) {
  call_ = call;
  context_ = context;
  done_ = 0;
  ticket_ = static_cast<uint64_t>(chunks) << 32;
  if (sleeping_ > 0) {  // sequentially consistent: a thread about to sleep sees the ticket first
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
  while (waiting()) {
    const uint64_t ticket = ticket_.fetch_add(1);
    const uint64_t chunk = static_cast<uint32_t>(ticket);
    if (chunk >= ticket >> 32) return;
    try {
      call_(context_, static_cast<int64_t>(chunk), thread);
    } catch (...) {
      std::lock_guard lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
    }
    done_.fetch_add(1, std::memory_order_release);
  }
}

void Pool::serve(int thread) {
  while (!stop_) {
    for (int spins = 0; spins < kSpins && !waiting(); ++spins) relax();
    if (waiting()) {
      help(thread);
      continue;
    }
    std::unique_lock lock(sleep_mutex_);
    ++sleeping_;
    wake_.wait(lock, [this] { return stop_ || waiting(); });
    --sleeping_;
  }
}

}  // namespace anabranch
