#include "file.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "core/error.h"

namespace nasb {
namespace {

constexpr size_t kMaxBytes = size_t{1} << 31;

[[noreturn]] void refuse(const std::string& reason) { throw Error(ErrorCode::kFile, "cannot be read: " + reason); }

}  // namespace

std::string read_file(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), &std::fclose);
  if (!file) refuse(std::strerror(errno));
  std::string bytes;
  char part[1 << 16];
  for (size_t count; (count = std::fread(part, 1, sizeof part, file.get())) > 0; bytes.append(part, count))
    if (bytes.size() > kMaxBytes) refuse("it is larger than 2 GiB");
  if (std::ferror(file.get())) refuse(std::strerror(errno));  // a folder can be opened, not read
  return bytes;
}

}  // namespace nasb
