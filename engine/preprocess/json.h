// A small JSON reader for the metadata of a model: values, no writing. Depth and size are bounded.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace nasb::json {

enum class Kind { kNull, kBool, kNumber, kText, kList, kTable };

struct Value {
  Kind kind = Kind::kNull;
  bool boolean = false;
  double number = 0;
  std::string text;
  std::vector<Value> items;                            // of a list
  std::vector<std::pair<std::string, Value>> members;  // of a table, in the text's order

  const Value* find(const std::string& key) const;  // null where there is none
};

// Raises Error (kFile) with the offset of what is not JSON.
Value parse(const std::string& text);

}  // namespace nasb::json
