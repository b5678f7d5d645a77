"""What to compress, how, and how far: frozen, validated, and readable from versioned JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

_VERSION = 1


@dataclass(frozen=True)
class Budget:
    """How far to go; every limit that is given holds.

    Args:
        flops: reduction of the convolutions' FLOPs, whole network (3 means a third), at least 1.
        params: reduction of the numbers that the convolutions store, at least 1.
        energy: share of each cluster's output energy to keep, in (0, 1]; stands alone.
    """

    flops: float | None = None
    params: float | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        if (self.flops is None and self.params is None) == (self.energy is None):
            raise ValueError(
                f"budget: got flops={self.flops}, params={self.params} and energy={self.energy}, "
                "expected either reductions or an energy"
            )
        for name in ("flops", "params"):
            value = getattr(self, name)
            if value is not None and not value >= 1:
                raise ValueError(f"budget: got {name}={value}, expected a reduction of at least 1")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ValueError(f"budget: got energy={self.energy}, expected a share in (0, 1]")


def flops(reduction: float) -> Budget:
    """A budget of ``reduction`` times fewer convolution FLOPs."""
    return Budget(flops=reduction)


def params(reduction: float) -> Budget:
    """A budget of ``reduction`` times fewer numbers stored."""
    return Budget(params=reduction)


def energy(share: float) -> Budget:
    """The paper's rule: the smallest rank of each cluster that keeps this share of its output energy."""
    return Budget(energy=share)


_CHOICES = {
    "method": ("hscc", "svd", "tucker2", "spatial_svd"),
    "factorization": ("activation", "weight"),
    "region_method": ("kmeans", "grid", "none"),
    "reconstruction": ("sequential", "independent"),
}


@dataclass(frozen=True)
class Config:
    """How a network is compressed.

    Args:
        budget: how far; see :class:`Budget`.
        method: "hscc", or a baseline without regions, clusters and sequential fit: "svd" (one region, one cluster),
            "tucker2" (1 x 1, k x k, 1 x 1) or "spatial_svd" (k x 1, 1 x k).
        factorization: "activation" (fits outputs on calibration data) or "weight" (plain SVD of the weight).
        regions: spatial regions a layer, at most.
        region_method: "kmeans" on position profiles, "grid", or "none" (one region).
        clusters: channel clusters a region, at most.
        reconstruction: "sequential" fits each layer to the dense outputs from the compressed prefix's inputs
            (Zhang et al. 2015), "independent" fits layers one by one; "weight" factors are always independent.
        search: choose regions and clusters of each layer by what they buy under the budget, up to the numbers given;
            otherwise (and always for "weight" factors and energy budgets) take the numbers given.
        sharing: let regions share rows where that is cheaper than own ones.
        squeeze: let layers project their input channels to fewer where that is cheaper; part of the search.
        sensitivity: weigh errors by how much they move the network's output; needs a differentiable model. Energy
            budgets and "weight" factors do not use it.
        rank_multiple: ranks are multiples of this.
        ridge: shrinkage of the sequential fit, relative to the mean variance.
        skip: names of layers to leave alone.
        seed: of the clusterings.
    """

    budget: Budget
    method: str = "hscc"
    factorization: str = "activation"
    regions: int = 16
    region_method: str = "kmeans"
    clusters: int = 2
    reconstruction: str = "sequential"
    search: bool = True
    sharing: bool = True
    squeeze: bool = True
    sensitivity: bool = True
    rank_multiple: int = 1
    ridge: float = 1e-4
    skip: Sequence[str] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "skip", tuple(self.skip))
        if not isinstance(self.budget, Budget):
            raise TypeError(f"budget: got {type(self.budget).__name__}, expected hscc.Budget, e.g. hscc.flops(5.3)")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {list(choices)}")
        for name in ("regions", "clusters", "rank_multiple"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: got {value!r}, expected an integer of at least 1")
        if not self.ridge >= 0:
            raise ValueError(f"ridge: got {self.ridge}, expected a number of at least 0")

    def to_json(self) -> str:
        return json.dumps({"_type": "hscc.Config", "_version": _VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Config:
        """Raises ValueError when the text is no Config of a known version or has unknown options."""
        data = json.loads(text)
        if not isinstance(data, dict) or data.pop("_type", None) != "hscc.Config":
            raise ValueError(f"config: got {text[:80]!r}, expected JSON with _type 'hscc.Config'")
        version = data.pop("_version", None)
        if version != _VERSION:
            raise ValueError(f"config: got version {version}, expected {_VERSION}")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise ValueError(f"config: got unknown options {unknown}, expected some of {sorted(known)}")
        return cls(**{**data, "budget": Budget(**data["budget"])})
