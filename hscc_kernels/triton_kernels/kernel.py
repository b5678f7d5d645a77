"""The device code: all regions and clusters of a low-rank convolution in one launch; V x_p never leaves the chip.

A program takes BP (image, position) pairs of one region, gathers their patches through the region's index map, and
keeps a *window*: V x_p for BR consecutive rows of the region's list, ready for the second stage.

Where every region is one cluster that fits the window and has its channels in order, that is all: the second stage
walks U, and stores are in order. Otherwise clusters are walked in order, and one whose slice lies in the window reuses
it: a region of at most BR rows reads its patches once, however many its clusters and however their slices overlap.
No index that is read from a tensor is trusted: each is clamped or masked before it becomes an address.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..layout import DENSE, ClusterItem, WorkItem

_DENSE = tl.constexpr(DENSE)
_WORK_WIDTH = tl.constexpr(len(WorkItem._fields))
_CLUSTER_WIDTH = tl.constexpr(len(ClusterItem._fields))


@triton.jit
def _pairs(
    positions, tile, start, count, N, H, W, C, Wo, P,
    GEOMETRY: tl.constexpr, TAP_BITS: tl.constexpr, OFFSET: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Where the (image, position) pairs of a tile read and write, counted from the tile's first image; each [BP].

    taps: a bit for each tap whose pixel lies in the image, or without TAP_BITS the patch's top and left in the upper
    and lower half. offset: the patch's first element in x. pixel: rows of the output, -1 where there is no pair. The
    last two take 32 bits unless OFFSET says 64.
    """
    KH: tl.constexpr = GEOMETRY[0]
    KW: tl.constexpr = GEOMETRY[1]
    first_image = tile * BP // tl.maximum(count, 1)
    pair = (tile * BP - first_image * count).to(tl.int32) + tl.arange(0, BP)
    slot = start + pair % tl.maximum(count, 1)
    image = pair // tl.maximum(count, 1)
    inside = (first_image + image < N) & (slot >= 0) & (slot < P)
    place = tl.load(positions + slot, mask=inside, other=-1)
    inside = inside & (place >= 0) & (place < P)
    top = tl.where(inside, place // Wo * GEOMETRY[2] - GEOMETRY[4], -(2**30))
    left = place % Wo * GEOMETRY[3] - GEOMETRY[5]
    if TAP_BITS:
        across = tl.zeros((BP,), tl.uint32)
        for right in tl.static_range(KW):
            w = left + right * GEOMETRY[7]
            across |= ((w >= 0) & (w < W)).to(tl.uint32) << right
        taps = tl.zeros((BP,), tl.uint32)
        for down in tl.static_range(KH):
            h = top + down * GEOMETRY[6]
            taps |= tl.where((h >= 0) & (h < H), across << (down * KW), 0)
    else:
        taps = (top.to(tl.int64) << 32) | left.to(tl.uint32, bitcast=True).to(tl.int64)
    offset = ((image.to(OFFSET) * H + top) * W + left) * C
    pixel = tl.where(inside, image.to(OFFSET) * P + place, -1)
    return first_image, taps, offset, pixel


@triton.jit
def _first_stage(
    x, v, rows, taps, offset, first_row, last_row, H, W, C, Q, S,
    GEOMETRY: tl.constexpr, WHOLE_ROW: tl.constexpr, TAP_BITS: tl.constexpr, THROUGH_L1: tl.constexpr,
    PRECISION: tl.constexpr, BP: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """V x_p for BR rows of the list from first_row on: [BP, BR] in the dtype of x, zero from last_row on."""
    KH: tl.constexpr = GEOMETRY[0]
    KW: tl.constexpr = GEOMETRY[1]
    r = first_row + tl.arange(0, BR)
    row = tl.load(rows + r, mask=(r >= 0) & (r < last_row) & (r < S), other=-1)  # [BR]
    row_ok = (row >= 0) & (row < Q)
    # A run is what a patch finds in one piece of memory: a tap's channels, or a whole kernel row's where they are few.
    if WHOLE_ROW:
        RUNS: tl.constexpr = KH
        ACROSS: tl.constexpr = 1
        length = KW * C
    else:
        RUNS: tl.constexpr = KH * KW
        ACROSS: tl.constexpr = KW
        length = C
    lane = tl.arange(0, BK)
    corner = offset + lane[None, :]  # [BP, BK]
    row_start = v + row.to(tl.int64)[:, None] * (KH * KW * C) + lane[None, :]  # [BR, BK]
    z = tl.zeros((BP, BR), tl.float32)
    for step in range(0, RUNS * tl.cdiv(length, BK)):
        run = step % RUNS  # innermost: division by a constant, and neighbouring taps share pixels while they are cached
        e = step // RUNS * BK
        down = run // ACROSS * GEOMETRY[6]
        right = run % ACROSS * GEOMETRY[7]
        lane_ok = (lane < length - e)[None, :]
        if TAP_BITS:
            ok = ((taps >> run) & 1) != 0  # [BP, 1]
        else:
            h = (taps >> 32).to(tl.int32) + down  # [BP, 1]
            w = taps.to(tl.int32) + right
            if WHOLE_ROW:
                w += ((e + lane) // C)[None, :]  # [BP, BK]
            ok = (h >= 0) & (h < H) & (w >= 0) & (w < W)
        source = x + ((down.to(offset.dtype) * W + right) * C + e) + corner
        if THROUGH_L1:
            source = tl.max_contiguous(source, (1, 4))  # narrower copies are another instruction
        a = tl.load(source, mask=ok & lane_ok, other=0.0)
        b = tl.load(row_start + (run * length + e), mask=row_ok[:, None] & lane_ok, other=0.0)
        z = tl.dot(a, b.T, z, input_precision=PRECISION)
    # A masked row is zero times x, which is NaN where x is infinite.
    return tl.where(row_ok[None, :], z, 0.0).to(x.dtype.element_ty)


@triton.jit
def _finish(y, bias, channel, ok, HAS_BIAS: tl.constexpr, RELU: tl.constexpr):
    """Bias and activation; y [BP, BO], channel and ok [BO]."""
    if HAS_BIAS:
        y += tl.load(bias + channel, mask=ok, other=0.0).to(tl.float32)[None, :]
    if RELU:
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)  # as torch does
    return y


@triton.jit
def _one_cluster(
    x, v, u, bias, rows, cluster, out, taps, offset, pixel, row_start, row_end, H, W, C, OC, Q, S, U,
    GEOMETRY: tl.constexpr, WHOLE_ROW: tl.constexpr, TAP_BITS: tl.constexpr, THROUGH_L1: tl.constexpr,
    HAS_BIAS: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr,
    BP: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """A tile of a region whose only cluster fits the window, with all channels in order; NaN where it does not fit."""
    first_row = row_start + tl.maximum(tl.load(cluster + 2), 0)
    rank = tl.load(cluster + 3)
    u_start = tl.load(cluster + 4)
    fits = (rank >= 0) & (rank <= BR) & (u_start >= 0) & (u_start + rank.to(tl.int64) * OC <= U)
    rank = tl.where(fits, rank, 0)
    u += u_start // OC * OC  # no change, but now the compiler knows how it is aligned
    z = _first_stage(
        x, v, rows, taps[:, None], offset[:, None], first_row, tl.minimum(first_row + rank, row_end),
        H, W, C, Q, S, GEOMETRY, WHOLE_ROW, TAP_BITS, THROUGH_L1, PRECISION, BP, BR, BK,
    )  # fmt: skip
    z = tl.where(fits, z, float("nan")).to(z.dtype)
    s = tl.arange(0, BR)
    for o0 in range(0, OC, BO):
        o = o0 + tl.arange(0, BO)
        o_ok = o < OC
        w = tl.load(u + (s[:, None] * OC + o[None, :]), mask=(s < rank)[:, None] & o_ok[None, :], other=0.0)
        y = _finish(tl.dot(z, w, input_precision=PRECISION), bias, o, o_ok, HAS_BIAS, RELU)
        place = out + (pixel * OC)[:, None] + o[None, :]
        tl.store(place, y.to(out.dtype.element_ty), mask=(pixel >= 0)[:, None] & o_ok[None, :])


@triton.jit
def _second_stage(y, z, u, s, o, first, last, count, u_start, dense, PRECISION: tl.constexpr, OFFSET: tl.constexpr):
    """y + z U for rows first..last of a cluster's slice; column i of z is row s[i]. A dense cluster's U is 1."""
    s_ok = (s >= first) & (s < last)  # [BR]
    block = u + u_start + (s.to(OFFSET)[:, None] * count + o[None, :])
    w = tl.load(block, mask=(s_ok & ~dense)[:, None] & (o < count)[None, :], other=0.0)  # [BR, BO]
    one = (s_ok & dense)[:, None] & (s[:, None] == o[None, :])
    w = tl.where(one, 1.0, w).to(z.dtype)
    return tl.dot(tl.where(s_ok[None, :], z, 0.0).to(z.dtype), w, y, input_precision=PRECISION)


@triton.jit
def _clusters(
    x, v, u, bias, rows, channels, clusters, out, taps, offset, pixel,
    row_start, row_end, cluster_start, cluster_end, H, W, C, OC, Q, S, U,
    GEOMETRY: tl.constexpr, WHOLE_ROW: tl.constexpr, TAP_BITS: tl.constexpr, THROUGH_L1: tl.constexpr,
    HAS_BIAS: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr, OFFSET: tl.constexpr,
    BP: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """A tile of any region: clusters of any rank, dense ones too, their channels anywhere."""
    window = -BR  # the first row of the region's list that z holds; holds none yet
    z = tl.zeros((BP, BR), x.dtype.element_ty)
    for k in range(cluster_start, cluster_end):
        cluster = clusters + k * _CLUSTER_WIDTH
        first_channel = tl.load(cluster)
        count = tl.minimum(tl.load(cluster + 1), OC)
        slice_start = tl.maximum(tl.load(cluster + 2), 0)
        rank = tl.load(cluster + 3)
        u_start = tl.load(cluster + 4)
        dense = u_start == _DENSE
        u_end = u_start + rank.to(tl.int64) * count
        rank = tl.where((u_start >= 0) & (u_end <= U) | dense, rank, 0)
        for o0 in range(0, count, BO):
            o = o0 + tl.arange(0, BO)
            y = tl.zeros((BP, BO), tl.float32)
            first = tl.where(dense, o0, 0)  # a dense cluster's rows are its channels
            last = tl.where(dense, tl.minimum(o0 + BO, rank), rank)
            # Pipelined, fp32 would spill registers for the next block of U; in 16 bits nothing would change.
            for r0 in tl.range(first, last, BR, num_stages=1):
                r1 = tl.minimum(r0 + BR, last)
                if slice_start + r0 < window or slice_start + r1 > window + BR:
                    window = slice_start + r0
                    z = _first_stage(
                        x, v, rows, taps[:, None], offset[:, None], row_start + window, row_end,
                        H, W, C, Q, S, GEOMETRY, WHOLE_ROW, TAP_BITS, THROUGH_L1, PRECISION, BP, BR, BK,
                    )  # fmt: skip
                s = window - slice_start + tl.arange(0, BR)
                y = _second_stage(y, z, u, s, o, r0, r1, count, u_start, dense, PRECISION, OFFSET)
            slot = first_channel + o
            o_ok = (o < count) & (slot >= 0) & (slot < OC)
            channel = tl.load(channels + slot, mask=o_ok, other=-1)  # [BO]
            o_ok = o_ok & (channel >= 0) & (channel < OC)
            # Channels first: where neither index runs on, the first is the one laid along a warp's lanes.
            y = _finish(y, bias, channel, o_ok, HAS_BIAS, RELU).to(out.dtype.element_ty).T  # [BO, BP]
            place = out + (pixel * OC)[None, :] + channel[:, None]
            tl.store(place, y, mask=o_ok[:, None] & (pixel >= 0)[None, :])


# Sizes that align no address are not specialized: one binary serves all batches and maps.
@triton.jit(do_not_specialize=["N", "H", "W", "Wo", "P", "Q", "S", "U", "R", "K"])
def lowrank_conv2d_kernel(
    x, v, u, bias, positions, rows, channels, work, clusters, out,
    N, H, W, C, Wo, P, OC, Q, S, U, R, K, bias_stride,
    GEOMETRY: tl.constexpr, WHOLE_ROW: tl.constexpr, TAP_BITS: tl.constexpr, ONE_CLUSTER: tl.constexpr,
    HAS_BIAS: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr, OFFSET: tl.constexpr,
    BP: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, BO: tl.constexpr, THROUGH_L1: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0).to(tl.int64)
    for order in range(0, R):  # dearest region first
        item = work + order * _WORK_WIDTH
        region = tl.minimum(tl.maximum(tl.load(item), 0), R - 1)
        position_start = tl.load(item + 1)
        position_count = tl.load(item + 2)
        row_start = tl.load(item + 3)
        row_end = row_start + tl.load(item + 4)
        cluster_start = tl.maximum(tl.load(item + 5), 0)
        cluster_end = tl.minimum(cluster_start + tl.load(item + 6), K)
        region_bias = bias + region * bias_stride
        pairs = tl.maximum(position_count, 0).to(tl.int64) * N
        tiles = tl.cdiv(pairs, BP)
        first_image, taps, offset, pixel = _pairs(
            positions, tile, position_start, position_count, N, H, W, C, Wo, P, GEOMETRY, TAP_BITS, OFFSET, BP
        )
        while tile < tiles:
            x_tile = x + first_image * H * W * C
            out_tile = out + first_image * P * OC
            if ONE_CLUSTER:
                _one_cluster(
                    x_tile, v, u, region_bias, rows, clusters + tl.minimum(cluster_start, K - 1) * _CLUSTER_WIDTH,
                    out_tile, taps, offset, pixel, row_start, row_end, H, W, C, OC, Q, S, U,
                    GEOMETRY, WHOLE_ROW, TAP_BITS, THROUGH_L1, HAS_BIAS, RELU, PRECISION, BP, BR, BK, BO,
                )  # fmt: skip
            else:
                _clusters(
                    x_tile, v, u, region_bias, rows, channels + region * OC, clusters, out_tile, taps, offset, pixel,
                    row_start, row_end, cluster_start, cluster_end, H, W, C, OC, Q, S, U,
                    GEOMETRY, WHOLE_ROW, TAP_BITS, THROUGH_L1, HAS_BIAS, RELU, PRECISION, OFFSET, BP, BR, BK, BO,
                )  # fmt: skip
            tile += tl.num_programs(0)
            # Carried by the loop, the addresses change layout once a tile; computed in it, they would be computed
            # again in every layout that needs them, and masks would change theirs in every step of the first stage.
            first_image, taps, offset, pixel = _pairs(
                positions, tile, position_start, position_count, N, H, W, C, Wo, P, GEOMETRY, TAP_BITS, OFFSET, BP
            )
        tile -= tiles
