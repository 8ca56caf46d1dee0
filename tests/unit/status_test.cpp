// Status codes have their names, and this thread's last error is kept, cut and copied as promised.
#include "core/status.h"

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <regex>
#include <string>
#include <thread>
#include <vector>

namespace {

using rmsnorm::copy_last_error;
using rmsnorm::fail;

// Every constant of rmsnorm_status_t that the header declares. Tests run from the repository's
// root.
std::map<int32_t, std::string> statuses_of_the_header() {
  std::map<int32_t, std::string> found;
  std::ifstream header("include/rmsnorm.h");
  const std::regex constant("^ *(RMSNORM_SUCCESS|RMSNORM_ERROR_[A-Z_]+) = ([0-9]+)");
  for (std::string line; std::getline(header, line);) {
    std::smatch match;
    if (std::regex_search(line, match, constant)) found[std::stoi(match[2])] = match[1];
  }
  return found;
}

std::string last_error() {
  std::vector<char> text(copy_last_error(nullptr, 0));
  copy_last_error(text.data(), text.size());
  return text.data();
}

TEST(Status, EveryConstantHasItsName) {
  const std::map<int32_t, std::string> statuses = statuses_of_the_header();
  if (statuses.empty()) GTEST_SKIP() << "include/rmsnorm.h is not here";
  EXPECT_GE(statuses.size(), 25u);
  for (const auto &[status, name] : statuses) EXPECT_EQ(rmsnorm::status_name(status), name);
  for (int32_t status = -10; status < 7000; ++status)
    if (statuses.count(status) == 0) {
      ASSERT_STREQ(rmsnorm::status_name(status), "unknown status") << status;
    }
  for (const int32_t status : {INT32_MIN, INT32_MAX})
    EXPECT_STREQ(rmsnorm::status_name(status), "unknown status");
}

TEST(Status, ClassesAreByThousands) {
  for (const auto &[status, name] : statuses_of_the_header())
    EXPECT_TRUE(status == 0 || (status > 1000 && status < 6000)) << name;
}

TEST(LastError, KeepsTheLatestText) {
  EXPECT_EQ(fail(RMSNORM_ERROR_SHAPE, "cols = %d", 7), RMSNORM_ERROR_SHAPE);
  EXPECT_EQ(last_error(), "cols = 7");
  fail(RMSNORM_ERROR_NULL, "x");
  EXPECT_EQ(last_error(), "x");
  fail(RMSNORM_ERROR_NULL, "%s", "");
  EXPECT_EQ(last_error(), "");
}

TEST(LastError, CopiesWhatFits) {
  fail(RMSNORM_ERROR_VALUE, "0123456789");
  EXPECT_EQ(copy_last_error(nullptr, 0), 11u);
  char buf[16] = "***************";
  EXPECT_EQ(copy_last_error(buf, 0), 11u);
  EXPECT_EQ(buf[0], '*');
  EXPECT_EQ(copy_last_error(buf, 1), 11u);
  EXPECT_STREQ(buf, "");
  EXPECT_EQ(copy_last_error(buf, 5), 11u);
  EXPECT_STREQ(buf, "0123");
  EXPECT_EQ(buf[5], '*');
  EXPECT_EQ(copy_last_error(buf, 11), 11u);
  EXPECT_STREQ(buf, "0123456789");
  EXPECT_EQ(buf[11], '*');
  EXPECT_EQ(copy_last_error(buf, sizeof buf), 11u);
  EXPECT_STREQ(buf, "0123456789");
}

TEST(LastError, CutsLongTexts) {
  const std::string long_text(5000, 'a');
  fail(RMSNORM_ERROR_VALUE, "%s", long_text.c_str());
  const std::string kept = last_error();
  EXPECT_GE(kept.size(), 400u);
  EXPECT_LT(kept.size(), 5000u);
  EXPECT_EQ(kept, long_text.substr(0, kept.size()));
  EXPECT_EQ(copy_last_error(nullptr, 0), kept.size() + 1);
}

TEST(LastError, IsEachThreadsOwn) {
  fail(RMSNORM_ERROR_VALUE, "of this thread");
  std::string before, after;
  std::thread other([&] {
    before = last_error();
    fail(RMSNORM_ERROR_VALUE, "of the other");
    after = last_error();
  });
  other.join();
  EXPECT_EQ(before, "");
  EXPECT_EQ(after, "of the other");
  EXPECT_EQ(last_error(), "of this thread");
}

}  // namespace
