// Memory straight from the operating system: zeroed, page aligned, and free until it is touched.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>

namespace anabranch {

// Takes the pages of a read-only shared mapping out of this process's memory until they are read
// again. Of any other memory this would destroy what it holds.
inline void release_mapped(const uint8_t* begin, const uint8_t* end) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<uintptr_t>(begin) / page * page;  // its end was read before
  const auto last = reinterpret_cast<uintptr_t>(end) / page * page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    data_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data_ == MAP_FAILED) {
      data_ = nullptr;
      throw std::bad_alloc();
    }
#ifdef MADV_HUGEPAGE
    madvise(data_, bytes, MADV_HUGEPAGE);  // weights and keys are streamed: fewer page walks
#endif
  }
  Memory(Memory&& other) noexcept { swap(other); }
  Memory& operator=(Memory&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Memory() {
    if (data_) munmap(data_, bytes_);
  }

  size_t bytes() const { return bytes_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void swap(Memory& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Hands out pieces of large blocks, zeroed and aligned to 64 bytes. A block is freed with the last
// of its pieces. Weights lie so in huge pages however small each matrix is: measured, 18 instead of
// 14 GB/s of them at one row.
class Arena {
 public:
  struct Piece {
    std::shared_ptr<Memory> block;
    uint8_t* data;
  };

  Piece take(size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    if (!block_ || block_->bytes() - used_ < bytes) {
      block_ = std::make_shared<Memory>(std::max(bytes, kBlock));
      used_ = 0;
    }
    uint8_t* data = block_->as<uint8_t>() + used_;
    used_ += bytes;
    return {block_, data};
  }

 private:
  static constexpr size_t kBlock = size_t{64} << 20;

  std::shared_ptr<Memory> block_;
  size_t used_ = 0;
};

// Grows to the largest request and then stays: steady state allocates nothing.
class Scratch {
 public:
  template <class T>
  T* get(size_t count) {
    const size_t bytes = count * sizeof(T);
    if (bytes > memory_.bytes()) memory_ = Memory(bytes + bytes / 2);
    return memory_.as<T>();
  }

 private:
  Memory memory_;
};

}  // namespace anabranch
