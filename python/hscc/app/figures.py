"""Pictures of a compressed model: region maps over a mean image, ranks a layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from ..nn.conv2d import HSCConv2d
from ..report import Report


def region_maps(model: nn.Module, mean_image: np.ndarray, path: Path) -> None:
    """Each compressed layer's regions over the mean calibration image (H, W)."""
    plt = _pyplot()
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, HSCConv2d)]
    figure, axes = plt.subplots(1, len(layers) + 1, figsize=(2.4 * (len(layers) + 1), 2.8), squeeze=False)
    axes = axes[0]
    height, width = mean_image.shape
    axes[0].set_title("mean image", fontsize=9)
    for axis in axes:
        axis.imshow(mean_image, cmap="gray")
        axis.axis("off")
    for axis, (name, layer) in zip(axes[1:], layers, strict=True):
        labels = layer.plan.labels().cpu().numpy()
        extent = (0, width, height, 0)
        axis.imshow(labels, cmap="tab20", vmin=0, vmax=19, alpha=0.5, extent=extent, interpolation="none")
        axis.set_title(f"{name}: {labels.shape[0]}x{labels.shape[1]}, {labels.max() + 1} regions", fontsize=9)
    _save(figure, path)


def ranks(reports: dict[str, Report], path: Path) -> None:
    """Ranks of every region of every layer, one panel a compressed model."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, len(reports), figsize=(4.5 * len(reports), 3), squeeze=False, sharey=True)
    for axis, (title, report) in zip(axes[0], reports.items(), strict=True):
        layers = [layer for layer in report.layers if layer.ranks]
        for x, layer in enumerate(layers):
            totals = [sum(r or 0 for r in region) for region in layer.ranks]
            width = 0.8 / len(totals)
            offsets = x - 0.4 + width * (np.arange(len(totals)) + 0.5)
            axis.bar(offsets, totals, width * 0.9, color=[f"C{i % 10}" for i in range(len(totals))])
        axis.set_xticks(range(len(layers)), [layer.name for layer in layers])
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("layer (one bar a region)")
    axes[0][0].set_ylabel("rank")
    _save(figure, path)


def _pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'hscc[report]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    _pyplot().close(figure)
