#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace dllama {

/// Ends an answer at the first of some texts, wherever the borders of the tokens lie. It holds back only the end of the
/// text that could still become a stop text, and gives it out when it does not or when the answer ends.
class StopDetector {
  public:
    /// Empty texts are ignored.
    explicit StopDetector(std::vector<std::string> stops);

    /// Takes the next part of the answer and returns what may be shown now. Once stopped() it returns nothing more.
    std::string push(std::string_view text);
    /// What was held back, when the answer ends without a stop text.
    std::string flush();
    /// True when a stop text has come; neither it nor what followed it is ever shown.
    bool stopped() const { return stopped_; }
    /// The stop text that has come; empty before.
    const std::string& found() const { return found_; }

  private:
    std::vector<std::string> stops_;
    std::string held_, found_;
    bool stopped_ = false;
};

}  // namespace dllama
