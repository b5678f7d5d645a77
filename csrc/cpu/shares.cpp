#include "shares.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

namespace hscc::cpu {
namespace {

constexpr double kOutput = 8;  // what an output costs to write, in multiply-adds: measured on a Zen 4

double position_cost(const PlanView& plan, const WorkItem& item) {
  double cost = double(item.row_count) * double(plan.patch) + kOutput * double(plan.out_channels);
  for (int32_t k = 0; k < item.cluster_count; ++k) {
    const ClusterItem& c = plan.clusters[item.cluster_start + k];
    if (c.u_start != kDense) cost += double(c.rank) * c.channel_count;
  }
  return cost;
}

constexpr int64_t kHides = 64;  // positions of a part whose computation hides the arrival of its factors

// Whether each share takes its part of every region, its own images or much the same part of the map in every layer, so
// that few of a core's inputs lie in the cache of another core; else whole regions, so that one core reads their
// factors.
bool wants_parts(const PlanView& plan, int64_t shares) {
  const bool small_factors = plan.pool_rows * plan.patch + plan.u_size < plan.image_size;
  if (plan.batch < shares) return small_factors && plan.image_size < kCached;
  return small_factors || plan.batch * plan.out_height * plan.out_width >= kHides * shares * plan.work_count;
}

// Cuts the work list into shares of equal cost: a fixed function of the plan, the batch and the number of shares.
std::vector<std::vector<Span>> cut(const PlanView& plan, int64_t shares) {
  std::vector<std::vector<Span>> result(shares);
  if (wants_parts(plan, shares)) {
    for (int64_t i = 0; i < plan.work_count; ++i) {
      const int64_t count = plan.batch * plan.work[i].position_count;
      for (int64_t s = 0; s < shares; ++s) {
        const int64_t begin = count * s / shares, end = count * (s + 1) / shares;
        if (begin < end) result[s].push_back({&plan.work[i], begin, end});
      }
    }
    return result;
  }
  std::vector<double> costs(plan.work_count);
  double total = 0;
  for (int64_t i = 0; i < plan.work_count; ++i) {
    costs[i] = position_cost(plan, plan.work[i]);
    total += costs[i] * double(plan.batch * plan.work[i].position_count);
  }
  int64_t share = 0;
  double room = total / double(shares);
  for (int64_t i = 0; i < plan.work_count; ++i) {
    const int64_t end = plan.batch * plan.work[i].position_count;
    for (int64_t begin = 0; begin < end;) {
      const bool last = share + 1 == shares;
      const int64_t fits = last ? end - begin : std::min<int64_t>(end - begin, int64_t(room / costs[i] + 0.5));
      if (fits > 0) result[share].push_back({&plan.work[i], begin, begin + fits});
      begin += fits;
      room -= double(fits) * costs[i];
      if (begin < end) ++share, room = total / double(shares);
    }
  }
  return result;
}

}  // namespace

void run_shares(const PlanView& plan, void (*convolve)(const PlanView&, const Span*, int64_t span_count)) {
  const auto shares = cut(plan, std::max<int64_t>(1, torch::stable::get_num_threads()));
  torch::stable::parallel_for(0, int64_t(shares.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) convolve(plan, shares[i].data(), int64_t(shares[i].size()));
  });
}

}  // namespace hscc::cpu
