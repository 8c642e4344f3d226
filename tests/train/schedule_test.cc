#include "train/schedule.h"

#include <gtest/gtest.h>

namespace fathom {
namespace {

Schedule schedule(ScheduleKind kind) { return {kind, 1.0, 10, 0.1, 0.2}; }

TEST(Schedule, WarmsUpLinearlyToTheHighestRate) {
  for (const auto kind : {ScheduleKind::kConstant, ScheduleKind::kCosine, ScheduleKind::kLinear,
                          ScheduleKind::kWsd, ScheduleKind::kV3, ScheduleKind::kV2}) {
    EXPECT_DOUBLE_EQ(schedule(kind).lr_at(0, 100), 0.1);
    EXPECT_DOUBLE_EQ(schedule(kind).lr_at(4, 100), 0.5);
    EXPECT_DOUBLE_EQ(schedule(kind).lr_at(9, 100), 1.0);
    EXPECT_DOUBLE_EQ(schedule(kind).lr_at(10, 100), 1.0);
  }
}

TEST(Schedule, EndsWhereItShould) {
  EXPECT_DOUBLE_EQ(schedule(ScheduleKind::kConstant).lr_at(99, 100), 1.0);
  for (const auto kind :
       {ScheduleKind::kCosine, ScheduleKind::kLinear, ScheduleKind::kWsd, ScheduleKind::kV3}) {
    EXPECT_NEAR(schedule(kind).lr_at(99, 100), 0.1, 1e-12);
  }
  EXPECT_NEAR(schedule(ScheduleKind::kV2).lr_at(99, 100), 0.316 * 0.316, 1e-12);
}

TEST(Schedule, HasItsShapeInTheMiddle) {
  // half way from 10 to 100
  EXPECT_NEAR(schedule(ScheduleKind::kLinear).lr_at(55, 101), 0.55, 1e-12);
  EXPECT_NEAR(schedule(ScheduleKind::kCosine).lr_at(55, 101), 0.55, 1e-12);
  EXPECT_DOUBLE_EQ(schedule(ScheduleKind::kWsd).lr_at(80, 100), 1.0);
  EXPECT_LT(schedule(ScheduleKind::kWsd).lr_at(81, 100), 1.0);
  EXPECT_DOUBLE_EQ(schedule(ScheduleKind::kV3).lr_at(80, 100), 1.0);
  EXPECT_DOUBLE_EQ(schedule(ScheduleKind::kV2).lr_at(59, 100), 1.0);
  EXPECT_DOUBLE_EQ(schedule(ScheduleKind::kV2).lr_at(60, 100), 0.316);
  EXPECT_DOUBLE_EQ(schedule(ScheduleKind::kV2).lr_at(90, 100), 0.316 * 0.316);
}

TEST(Schedule, TakesTheShortestRuns) {
  for (const auto kind : {ScheduleKind::kCosine, ScheduleKind::kLinear, ScheduleKind::kWsd,
                          ScheduleKind::kV3, ScheduleKind::kV2}) {
    Schedule s = schedule(kind);
    s.warmup_steps = 0;
    for (int64_t step = 0; step < 2; ++step) {
      const double lr = s.lr_at(step, 2);
      EXPECT_TRUE(lr >= 0.09 && lr <= 1.0) << lr;
    }
    EXPECT_TRUE(s.lr_at(0, 1) > 0);
  }
}

}  // namespace
}  // namespace fathom
