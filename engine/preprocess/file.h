// A whole file as bytes.
#pragma once

#include <string>

namespace nasb {

// Raises Error (kFile) with the system's reason, without the path.
std::string read_file(const std::string& path);

}  // namespace nasb
