#include "preprocess/json.h"

#include <cstdint>
#include <cstdlib>
#include <locale>
#include <sstream>

#include "core/error.h"

namespace nasb::json {
namespace {

constexpr int kMaxDepth = 32;

class Parser {
 public:
  explicit Parser(const std::string& text) : text_(text) {}

  Value whole() {
    Value result = value(0);
    space();
    if (at_ != text_.size()) fail("text after the end");
    return result;
  }

 private:
  [[noreturn]] void fail(const char* problem) const {
    throw Error(ErrorCode::kFile,
                std::string("is not valid JSON: ") + problem + " at character " + std::to_string(at_));
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void space() {
    while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') ++at_;
  }

  void take(char expected) {
    if (peek() != expected) fail("unexpected character");
    ++at_;
  }

  void word(const char* expected) {
    for (const char* letter = expected; *letter != '\0'; ++letter) take(*letter);
  }

  Value value(int depth) {
    if (depth > kMaxDepth) fail("nested too deeply");
    Value result;
    space();
    switch (peek()) {
      case '{':
        result.kind = Kind::kTable;
        sequence('{', '}', [&] {
          std::string key = string();
          space();
          take(':');
          result.members.emplace_back(std::move(key), value(depth + 1));
        });
        break;
      case '[':
        result.kind = Kind::kList;
        sequence('[', ']', [&] { result.items.push_back(value(depth + 1)); });
        break;
      case '"':
        result.kind = Kind::kText;
        result.text = string();
        break;
      case 't':
      case 'f':
        result.kind = Kind::kBool;
        result.boolean = peek() == 't';
        word(result.boolean ? "true" : "false");
        break;
      case 'n':
        word("null");
        break;
      default:
        result.kind = Kind::kNumber;
        result.number = number();
    }
    return result;
  }

  template <typename Item>
  void sequence(char open, char close, const Item& item) {
    take(open);
    space();
    if (peek() == close) {
      ++at_;
      return;
    }
    for (;;) {
      space();
      item();
      space();
      if (peek() != ',') break;
      ++at_;
    }
    take(close);
  }

  double number() {
    const size_t begin = at_;
    if (peek() == '-') ++at_;
    digits(true);
    if (peek() == '.') {
      ++at_;
      digits(false);
    }
    if (peek() == 'e' || peek() == 'E') {
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      digits(false);
    }
    // Not strtod: a program around the C API may have set a locale with a decimal comma.
    std::istringstream stream(text_.substr(begin, at_ - begin));
    stream.imbue(std::locale::classic());
    double result = 0;
    stream >> result;
    if (stream.fail()) fail("a number out of range");
    return result;
  }

  void digits(bool leading) {
    const size_t begin = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    if (at_ == begin) fail("unexpected character");
    if (leading && at_ - begin > 1 && text_[begin] == '0') fail("a number with a leading 0");
  }

  uint32_t hex4() {
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = peek();
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) fail("a bad \\u escape");
      result = result * 16 + static_cast<uint32_t>(digit);
    }
    return result;
  }

  void escape(std::string* out) {
    const char c = peek();
    ++at_;
    switch (c) {
      case '"':
      case '\\':
      case '/':
        *out += c;
        return;
      case 'b':
        *out += '\b';
        return;
      case 'f':
        *out += '\f';
        return;
      case 'n':
        *out += '\n';
        return;
      case 'r':
        *out += '\r';
        return;
      case 't':
        *out += '\t';
        return;
      case 'u':
        break;
      default:
        fail("a bad escape");
    }
    uint32_t code = hex4();
    if (code >= 0xD800 && code < 0xDC00) {
      word("\\u");
      const uint32_t low = hex4();
      if (low < 0xDC00 || low > 0xDFFF) fail("half a surrogate pair");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    } else if ((code >= 0xDC00 && code <= 0xDFFF) || code == 0) {
      fail("a bad \\u escape");
    }
    if (code < 0x80) {
      *out += static_cast<char>(code);
      return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static constexpr uint32_t kFirst[] = {0, 0xC0, 0xE0, 0xF0};
    *out += static_cast<char>(kFirst[more] | (code >> (6 * more)));
    for (int i = more - 1; i >= 0; --i) *out += static_cast<char>(0x80 | ((code >> (6 * i)) & 0x3F));
  }

  std::string string() {
    take('"');
    std::string result;
    while (peek() != '"') {
      if (at_ >= text_.size() || static_cast<unsigned char>(peek()) < 0x20) fail("a text without its end");
      if (peek() == '\\') {
        ++at_;
        escape(&result);
      } else {
        result += text_[at_++];
      }
    }
    ++at_;
    return result;
  }

  const std::string& text_;
  size_t at_ = 0;
};

}  // namespace

const Value* Value::find(const std::string& key) const {
  for (const auto& member : members) {
    if (member.first == key) return &member.second;
  }
  return nullptr;
}

Value parse(const std::string& text) { return Parser(text).whole(); }

}  // namespace nasb::json
