#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <string>

#include "plan_tensors.h"

namespace hscc {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kAny = -1;  // for an output's height and width in sizes: those that the input gives
constexpr int64_t kMostPatch = (int64_t(1) << 31) / (255 * 128);  // so that sums of int8 products fit 32 bits
constexpr int64_t kMostSide = int64_t(1) << 30;                   // so that kernels may count rows, columns
constexpr int64_t kMostRow = int64_t(1) << 31;                    // and the numbers of a row in 32 bits

void check_tensor(const char* name, const Tensor& t, ScalarType dtype, int64_t ndim) {
  STD_TORCH_CHECK(t.is_cpu(), name, ": got a tensor that is not on the CPU, expected one that is");
  STD_TORCH_CHECK(t.scalar_type() == dtype, name, ": got dtype ", int(t.scalar_type()), ", expected ", int(dtype));
  STD_TORCH_CHECK(t.dim() == ndim, name, ": got ", t.dim(), " dimensions, expected ", ndim);
}

void check_index(const char* name, const Tensor& t, int64_t ndim) {
  check_tensor(name, t, ScalarType::Int, ndim);
  STD_TORCH_CHECK(t.is_contiguous(), name, ": got a strided tensor, expected a contiguous one");
}

void check_range(const char* name, const int32_t* values, int64_t count, int64_t bound) {
  int32_t low = 0, high = -1;
  for (int64_t i = 0; i < count; ++i) {
    low = std::min(low, values[i]);
    high = std::max(high, values[i]);
  }
  STD_TORCH_CHECK(low >= 0 && high < bound, name, ": got ", low, "..", high, ", expected 0..", bound - 1);
}

// Whether [start, start + count) lies in [0, bound).
bool inside(int64_t start, int64_t count, int64_t bound) {
  return start >= 0 && count >= 0 && start + count <= bound;
}

int64_t out_size(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  const int64_t span = size + 2 * pad - dilation * (kernel - 1) - 1;
  return span < 0 ? 0 : span / stride + 1;
}

// Kernel, stride, padding, dilation, each (height, width).
Geometry read_geometry(const std::vector<int64_t>& ints) {
  for (size_t i = 0; i < 8; ++i) {
    const int64_t least = i / 2 == 2 ? 0 : 1;  // only the padding may be 0
    STD_TORCH_CHECK(ints[i] >= least && ints[i] < (1 << 15), "sizes: got ", ints[i], " at ", i, ", expected ", least,
                    "..32767");
  }
  return {ints[0], ints[1], ints[2], ints[3], ints[4], ints[5], ints[6], ints[7]};
}

// Sets what an int8 call has more.
void view_quantisation(const Int8Tensors& t, PlanView& p) {
  check_tensor("v_scale", t.v_scale, ScalarType::Float, 1);
  STD_TORCH_CHECK(t.v_scale.is_contiguous() && t.v_scale.size(0) == p.pool_rows, "v_scale: got ", t.v_scale.size(0),
                  " scales, expected ", p.pool_rows, " without gaps, one a row of v");
  STD_TORCH_CHECK(p.patch <= kMostPatch, "v: got D = ", p.patch, ", expected at most ", kMostPatch);
  STD_TORCH_CHECK(t.scale >= 0x1p-126 && t.scale <= 0x1p126, "scale: got ", t.scale, ", expected 2^-126..2^126");
  STD_TORCH_CHECK(t.zero_point >= 0 && t.zero_point <= 255, "zero_point: got ", t.zero_point, ", expected 0..255");
  p.quantisation = {t.v_scale.const_data_ptr<float>(), float(t.scale), int32_t(t.zero_point), false};
}

void check_clusters(const PlanView& p, const WorkItem& item) {
  int64_t channels = 0;
  for (int64_t k = 0; k < item.cluster_count; ++k) {
    const ClusterItem& c = p.clusters[item.cluster_start + k];
    STD_TORCH_CHECK(inside(c.channel_start, c.channel_count, p.out_channels), "clusters: got channels ",
                    c.channel_start, " + ", c.channel_count, ", expected within ", p.out_channels);
    STD_TORCH_CHECK(inside(c.row_start, c.rank, item.row_count), "clusters: got rows ", c.row_start, " + ", c.rank,
                    ", expected within ", item.row_count);
    if (c.u_start == kDense) {
      STD_TORCH_CHECK(c.rank == c.channel_count, "clusters: got a dense one of rank ", c.rank, ", expected ",
                      c.channel_count);
    } else {
      STD_TORCH_CHECK(inside(c.u_start, int64_t(c.rank) * c.channel_count, p.u_size), "clusters: got u at ", c.u_start,
                      " + ", c.rank, " x ", c.channel_count, ", expected within ", p.u_size);
    }
    channels += c.channel_count;
  }
  STD_TORCH_CHECK(channels == p.out_channels, "clusters: got ", channels, " channels, expected ", p.out_channels);
}

void check_work(const PlanView& p, int64_t position_count) {
  int64_t positions = 0;
  for (int64_t i = 0; i < p.work_count; ++i) {
    const WorkItem& w = p.work[i];
    STD_TORCH_CHECK(inside(w.region, 1, p.regions), "work: got region ", w.region, ", expected under ", p.regions);
    STD_TORCH_CHECK(inside(w.position_start, w.position_count, position_count), "work: got positions ",
                    w.position_start, " + ", w.position_count, ", expected within ", position_count);
    STD_TORCH_CHECK(inside(w.row_start, w.row_count, p.row_total), "work: got rows ", w.row_start, " + ", w.row_count,
                    ", expected within ", p.row_total);
    STD_TORCH_CHECK(inside(w.cluster_start, w.cluster_count, p.cluster_total), "work: got clusters ", w.cluster_start,
                    " + ", w.cluster_count, ", expected within ", p.cluster_total);
    check_clusters(p, w);
    positions += w.position_count;
  }
  STD_TORCH_CHECK(positions == position_count, "work: got ", positions, " positions, expected ", position_count);
}

}  // namespace

PlanView view_plan(const PlanTensors& t) {
  const ScalarType given = t.x.scalar_type(), other = t.int8 ? ScalarType::Byte : ScalarType::BFloat16;
  STD_TORCH_CHECK(given == ScalarType::Float || given == other, "x: got dtype ", int(given), ", expected ",
                  int(ScalarType::Float), " or ", int(other));
  const ScalarType dtype = t.int8 ? ScalarType::Float : given;  // of all but x and v
  check_tensor("x", t.x, given, 4);
  check_tensor("v", t.v, t.int8 ? ScalarType::Char : dtype, 2);
  check_tensor("u", t.u, dtype, 1);
  check_index("positions", t.positions, 1);
  check_index("rows", t.rows, 1);
  check_index("channels", t.channels, 2);
  check_index("work", t.work, 2);
  check_index("clusters", t.clusters, 2);
  STD_TORCH_CHECK(t.work.size(1) == 8, "work: got ", t.work.size(1), " columns, expected 8");
  STD_TORCH_CHECK(t.clusters.size(1) == 5, "clusters: got ", t.clusters.size(1), " columns, expected 5");
  STD_TORCH_CHECK(t.activation == "none" || t.activation == "relu", "activation: got ", t.activation,
                  ", expected none or relu");

  PlanView p{};
  STD_TORCH_CHECK(t.sizes.size() == 10, "sizes: got ", t.sizes.size(), " ints, expected 10");
  p.geometry = read_geometry(t.sizes);
  const Geometry& g = p.geometry;
  p.batch = t.x.size(0), p.in_channels = t.x.size(1), p.height = t.x.size(2), p.width = t.x.size(3);
  STD_TORCH_CHECK(std::max(p.height, p.width) < kMostSide && p.width * p.in_channels < kMostRow, "x: got images of ",
                  p.height, " x ", p.width, " x ", p.in_channels, ", expected sides below ", kMostSide,
                  " and rows of fewer than ", kMostRow, " numbers");
  p.out_height = out_size(p.height, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h);
  p.out_width = out_size(p.width, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w);
  p.out_channels = t.channels.size(1), p.regions = t.channels.size(0);
  p.image_size = p.height * p.width * p.in_channels + p.out_height * p.out_width * p.out_channels;
  p.patch = t.v.size(1), p.pool_rows = t.v.size(0);
  p.work_count = t.work.size(0), p.cluster_total = t.clusters.size(0);
  p.row_total = t.rows.numel(), p.u_size = t.u.numel();
  p.bfloat16 = dtype == ScalarType::BFloat16;
  p.v = t.v.const_data_ptr(), p.u = t.u.const_data_ptr();
  p.positions = t.positions.const_data_ptr<int32_t>();
  p.rows = t.rows.const_data_ptr<int32_t>();
  p.channels = t.channels.const_data_ptr<int32_t>();
  p.work = reinterpret_cast<const WorkItem*>(t.work.const_data_ptr<int32_t>());
  p.clusters = reinterpret_cast<const ClusterItem*>(t.clusters.const_data_ptr<int32_t>());
  p.relu = t.activation == "relu";

  const int64_t position_count = t.positions.numel();
  STD_TORCH_CHECK(p.patch == g.kernel_h * g.kernel_w * p.in_channels, "v: got D = ", p.patch, ", expected ", g.kernel_h,
                  " x ", g.kernel_w, " x ", p.in_channels);
  const bool any = t.sizes[8] == kAny && t.sizes[9] == kAny;
  STD_TORCH_CHECK(any || (p.out_height == t.sizes[8] && p.out_width == t.sizes[9]), "x: got ", p.height, " x ", p.width,
                  ", which gives an output of ", p.out_height, " x ", p.out_width, ", expected one of ", t.sizes[8],
                  " x ", t.sizes[9]);
  STD_TORCH_CHECK(position_count == p.out_height * p.out_width, "positions: got ", position_count, ", expected ",
                  p.out_height, " x ", p.out_width);
  if (t.bias) {
    const bool shared = t.bias->dim() == 1;  // by all regions
    check_tensor("bias", *t.bias, dtype, shared ? 1 : 2);
    STD_TORCH_CHECK((shared || t.bias->size(0) == p.regions) && t.bias->size(-1) == p.out_channels, "bias: got ",
                    shared ? 1 : t.bias->size(0), " x ", t.bias->size(-1), ", expected ", p.out_channels, " or ",
                    p.regions, " x ", p.out_channels);
    p.bias = t.bias->const_data_ptr();
    p.bias_region_stride = shared ? 0 : t.bias->stride(0), p.bias_channel_stride = t.bias->stride(-1);
  }
  if (t.int8) view_quantisation(*t.int8, p);
  check_range("positions", p.positions, position_count, position_count);
  check_range("rows", p.rows, p.row_total, p.pool_rows);
  check_range("channels", p.channels, p.regions * p.out_channels, p.out_channels);
  check_work(p, position_count);
  return p;
}

}  // namespace hscc
