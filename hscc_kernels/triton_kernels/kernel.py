"""The device code: all regions and clusters of a low-rank convolution in one launch; V x_p never leaves the chip.

A program takes BP (image, position) pairs of one region, gathers their patches through the region's index map,
and keeps a *window*: V x_p for BR consecutive rows of the region's list, ready for the second stage. Clusters are
walked in order, and one whose slice lies in the window reuses it: a region of at most BR rows reads its patches
once, however many its clusters and however their slices overlap.
No index that is read from a tensor is trusted: each is clamped or masked before it becomes an address.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..plan import DENSE, ClusterItem, WorkItem

_DENSE = tl.constexpr(DENSE)
_WORK_WIDTH = tl.constexpr(len(WorkItem._fields))
_CLUSTER_WIDTH = tl.constexpr(len(ClusterItem._fields))


@triton.jit
def _pairs(
    positions, tile, start, count, N, H, W, C, Wo, P,
    GEOMETRY: tl.constexpr, OFFSET: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Where the (image, position) pairs of a tile read and write, counted from the tile's first image; each [BP].

    corner: the patch's top and left in the upper and lower half. offset: the same as elements of x. pixel: rows of
    the output, -1 where there is no pair. They take 32 bits unless OFFSET says 64.
    """
    first_image = tile * BP // tl.maximum(count, 1)
    pair = (tile * BP - first_image * count).to(tl.int32) + tl.arange(0, BP)
    slot = start + pair % tl.maximum(count, 1)
    image = pair // tl.maximum(count, 1)
    inside = (first_image + image < N) & (slot >= 0) & (slot < P)
    place = tl.load(positions + slot, mask=inside, other=-1)
    inside = inside & (place >= 0) & (place < P)
    top = tl.where(inside, place // Wo * GEOMETRY[2] - GEOMETRY[4], -(2**30))
    left = place % Wo * GEOMETRY[3] - GEOMETRY[5]
    corner = (top.to(tl.int64) << 32) | left.to(tl.uint32, bitcast=True).to(tl.int64)
    offset = ((image.to(OFFSET) * H + top) * W + left) * C
    pixel = tl.where(inside, image.to(OFFSET) * P + place, -1)
    return first_image, corner, offset, pixel


@triton.jit
def _first_stage(
    x, v, rows, corner, offset, first_row, last_row, H, W, C, Q, S,
    GEOMETRY: tl.constexpr, WHOLE_ROW: tl.constexpr, PRECISION: tl.constexpr,
    BP: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """V x_p for BR rows of the list from first_row on: [BP, BR] in the dtype of x, zero from last_row on."""
    KH: tl.constexpr = GEOMETRY[0]
    KW: tl.constexpr = GEOMETRY[1]
    DH: tl.constexpr = GEOMETRY[6]
    DW: tl.constexpr = GEOMETRY[7]
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
    row_base = row.to(tl.int64) * (KH * KW * C)
    z = tl.zeros((BP, BR), tl.float32)
    for step in range(0, RUNS * tl.cdiv(length, BK)):
        run = step % RUNS  # innermost: division by a constant, and neighbouring taps share pixels while they are cached
        e = step // RUNS * BK + tl.arange(0, BK)  # [BK]
        down = run // ACROSS * DH
        right = run % ACROSS * DW
        h = (corner >> 32).to(tl.int32) + down  # [BP, 1]
        w = corner.to(tl.int32) + right
        if WHOLE_ROW:
            w += (e // C)[None, :]  # [BP, BK]
        ok = (h >= 0) & (h < H) & (w >= 0) & (w < W) & (e < length)[None, :]
        pixel = x + (offset + (down.to(offset.dtype) * W + right) * C)
        a = tl.load(pixel + e[None, :], mask=ok, other=0.0)  # [BP, BK]
        weight_ok = row_ok[:, None] & (e < length)[None, :]
        b = tl.load(v + row_base[:, None] + (run * length + e)[None, :], mask=weight_ok, other=0.0)  # [BR, BK]
        z = tl.dot(a, b.T, z, input_precision=PRECISION)
    # A masked row is zero times x, which is NaN where x is infinite.
    return tl.where(row_ok[None, :], z, 0.0).to(x.dtype.element_ty)


@triton.jit
def _second_stage(
    y, z, u, s, o, first, last, count, u_start, dense,
    ONE_CLUSTER: tl.constexpr, PRECISION: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """y + z U for rows first..last of a cluster's slice; column i of z is row s[i]. A dense cluster's U is 1."""
    s_ok = (s >= first) & (s < last)  # [BR]
    u_ok = s_ok if ONE_CLUSTER else s_ok & ~dense
    block = u + u_start + (s.to(OFFSET)[:, None] * count + o[None, :])
    w = tl.load(block, mask=u_ok[:, None] & (o < count)[None, :], other=0.0)  # [BR, BO]
    if not ONE_CLUSTER:
        one = (s_ok & dense)[:, None] & (s[:, None] == o[None, :])
        w = tl.where(one, 1.0, w).to(z.dtype)
    return tl.dot(tl.where(s_ok[None, :], z, 0.0).to(z.dtype), w, y, input_precision=PRECISION)


@triton.jit
def _store(
    y, out, bias, channels, bias_row, channel_row, pixel, o, first_channel, count, OC,
    HAS_BIAS: tl.constexpr, RELU: tl.constexpr, ONE_CLUSTER: tl.constexpr,
):  # fmt: skip
    """Bias, activation, and the way back through the channel permutation."""
    slot = first_channel + o
    o_ok = (o < count) & (slot >= 0) & (slot < OC)
    channel = tl.load(channels + channel_row + slot, mask=o_ok, other=-1)  # [BO]
    o_ok = o_ok & (channel >= 0) & (channel < OC)
    if HAS_BIAS:
        y += tl.load(bias + bias_row + channel, mask=o_ok, other=0.0).to(tl.float32)[None, :]
    if RELU:
        y = tl.where(y < 0, 0.0, y)  # keeps NaN, as torch does
    # Channels first: where neither index runs on, the first is the one laid along a warp's lanes.
    y = y.to(out.dtype.element_ty).T  # [BO, BP]
    in_order = False
    if ONE_CLUSTER:
        # One cluster is rarely permuted, and stores in order are 16 bytes wide instead of 2.
        in_order = tl.max(tl.where(o_ok, tl.abs(channel - o), 0), 0) == 0
    if in_order:
        place = out + (pixel * OC)[None, :] + o[:, None]
        tl.store(place, y, mask=(o < count)[:, None] & (pixel >= 0)[None, :])
    else:
        place = out + (pixel * OC)[None, :] + channel[:, None]
        tl.store(place, y, mask=o_ok[:, None] & (pixel >= 0)[None, :])


@triton.jit
def lowrank_conv2d_kernel(
    x, v, u, bias, positions, rows, channels, work, clusters, out,
    N, H, W, C, Wo, P, OC, Q, S, U, R, K, bias_stride,
    GEOMETRY: tl.constexpr, WHOLE_ROW: tl.constexpr, ONE_CLUSTER: tl.constexpr, HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr, PRECISION: tl.constexpr, OFFSET: tl.constexpr,
    BP: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, BO: tl.constexpr,
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
        pairs = tl.maximum(position_count, 0).to(tl.int64) * N
        tiles = tl.cdiv(pairs, BP)
        first_image, corner, offset, pixel = _pairs(
            positions, tile, position_start, position_count, N, H, W, C, Wo, P, GEOMETRY, OFFSET, BP
        )
        while tile < tiles:
            x_tile = x + first_image * H * W * C
            out_tile = out + first_image * P * OC
            window = -BR  # the first row of the slice list that z holds; holds none yet
            z = tl.zeros((BP, BR), x.dtype.element_ty)
            for k in range(cluster_start, cluster_end):
                cluster = clusters + k * _CLUSTER_WIDTH
                first_channel = tl.load(cluster)
                count = tl.minimum(tl.load(cluster + 1), OC)
                slice_start = tl.maximum(tl.load(cluster + 2), 0)
                rank = tl.load(cluster + 3)
                u_start = tl.load(cluster + 4)
                dense = u_start == _DENSE
                if ONE_CLUSTER:
                    count = OC
                    u_start = u_start // OC * OC  # no change, but now the compiler knows how it is aligned
                u_end = u_start + rank.to(tl.int64) * count
                inside = (u_start >= 0) & (u_end <= U)
                rank = tl.where(inside if ONE_CLUSTER else inside | dense, rank, 0)
                for o0 in range(0, count, BO):
                    o = o0 + tl.arange(0, BO)
                    y = tl.zeros((BP, BO), tl.float32)
                    # A dense cluster's rows are its channels. ONE_CLUSTER has none, but a constant 0 spills on sm_100.
                    first = tl.where(dense, o0, 0)
                    last = tl.where(dense, tl.minimum(o0 + BO, rank), rank)
                    for r0 in range(first, last, BR):
                        r1 = tl.minimum(r0 + BR, last)
                        if slice_start + r0 < window or slice_start + r1 > window + BR:
                            window = slice_start + r0
                            z = _first_stage(
                                x_tile, v, rows, corner[:, None], offset[:, None], row_start + window, row_end,
                                H, W, C, Q, S, GEOMETRY, WHOLE_ROW, PRECISION, BP, BR, BK,
                            )  # fmt: skip
                        s = window - slice_start + tl.arange(0, BR)
                        y = _second_stage(y, z, u, s, o, r0, r1, count, u_start, dense, ONE_CLUSTER, PRECISION, OFFSET)
                    _store(
                        y, out_tile, bias, channels, region * bias_stride, region * OC, pixel, o,
                        first_channel, count, OC, HAS_BIAS, RELU, ONE_CLUSTER,
                    )  # fmt: skip
            tile += tl.num_programs(0)
            # Carried by the loop, the addresses change layout once a tile; computed in it, they would be computed
            # again in every layout that needs them, and masks would change theirs in every step of the first stage.
            first_image, corner, offset, pixel = _pairs(
                positions, tile, position_start, position_count, N, H, W, C, Wo, P, GEOMETRY, OFFSET, BP
            )
        tile -= tiles
