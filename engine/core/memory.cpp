#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace nasb {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

Memory::Memory(size_t bytes) {
  const size_t unit = bytes >= kHugePage ? kHugePage : kVectorAlignment;
  const size_t rounded = (bytes + unit - 1) / unit * unit + (bytes == 0 ? unit : 0);
  data_ = rounded < bytes ? nullptr : static_cast<uint8_t*>(std::aligned_alloc(unit, rounded));
  if (!data_) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (unit == kHugePage) madvise(data_, rounded, MADV_HUGEPAGE);  // a wish: nothing depends on it
#endif
  std::memset(data_, 0, rounded);
}

Memory::~Memory() { std::free(data_); }

}  // namespace nasb
