"""What to compress, how, and how far: frozen, validated, and readable from versioned JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace

_VERSION = 1
REDUCTIONS = ("flops", "params", "bytes", "latency")  # the limits that can stand together, as costs are ordered
FAR = 10.0  # times less: where layers are worth a close look, if nothing says how far it goes


@dataclass(frozen=True)
class Budget:
    """How far to go; every limit that is given holds. Reductions are of all convolutions together, at least 1.

    Args:
        flops: reduction of FLOPs (3 means a third).
        params: reduction of the numbers stored. At least 1 with any other reduction: nothing ever grows.
        bytes: reduction of the bytes stored: numbers in the layer's dtype and the int32 tensors that say which
            positions, rows and channels belong together.
        latency: speed-up over the dense convolutions' measured time, as predicted for this machine, device, dtype,
            number of threads and ``Config.latency_batch``. A layer that would not get faster stays dense.
        energy: share of each cluster's output energy to keep, in (0, 1]; stands alone.
        max_drop: points (percent) of the mean score that may be lost: as far as that allows, the other limits being
            the least to reach. See ``evaluate`` of :func:`hscc.compress_`.
        confidence: with which the true drop is within ``max_drop``, in (0.5, 1).
        aim: what ``max_drop`` is to be spent on: one of the reductions. With "flops" and "latency" the models that
            hold are timed, and the fastest is taken; with "params" and "bytes" the smallest.
    """

    flops: float | None = None
    params: float | None = None
    energy: float | None = None
    bytes: float | None = None
    latency: float | None = None
    max_drop: float | None = None
    confidence: float = 0.95
    aim: str = "flops"

    def __post_init__(self) -> None:
        limits = {name: getattr(self, name) for name in (*REDUCTIONS, "max_drop")}
        if all(value is None for value in limits.values()) == (self.energy is None):
            got = ", ".join(f"{name}={value}" for name, value in limits.items())
            raise ValueError(
                f"budget: got {got} and energy={self.energy}, expected reductions, a max_drop, or an energy alone"
            )
        for name in REDUCTIONS:
            value = getattr(self, name)
            if value is not None and not value >= 1:
                raise ValueError(f"budget: got {name}={value}, expected a reduction of at least 1")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ValueError(f"budget: got energy={self.energy}, expected a share in (0, 1]")
        if self.max_drop is not None and not 0 < self.max_drop < 100:
            raise ValueError(f"budget: got max_drop={self.max_drop}, expected points of the score, between 0 and 100")
        if not 0.5 < self.confidence < 1:
            raise ValueError(f"budget: got confidence={self.confidence}, expected one between 0.5 and 1, such as 0.95")
        if self.aim not in REDUCTIONS:
            raise ValueError(f"budget: got aim={self.aim!r}, expected one of {list(REDUCTIONS)}")

    @property
    def furthest(self) -> float:
        """The largest reduction asked for; what a drop allows is not known before."""
        return max(FAR if self.max_drop is not None else 1, *(getattr(self, name) or 1 for name in REDUCTIONS))

    @property
    def timed(self) -> bool:
        """Whether predicted times count."""
        return self.latency is not None or (self.max_drop is not None and self.aim == "latency")


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
    "method": ("hscc", "svd", "tucker2", "spatial_svd", "balf"),
    "factorization": ("activation", "weight"),
    "region_method": ("kmeans", "grid", "none"),
    "reconstruction": ("sequential", "independent"),
    "effort": ("quick", "normal", "thorough"),
    "dtype": ("float", "int8"),
}
_BLOCKS = (16, 8, 4, 2)  # channels that runtimes compute together, most first
_PORTABLE = {"region_method": "none", "regions": 1, "clusters": 1, "sharing": False}
_PLAIN = {**_PORTABLE, "reconstruction": "independent", "search": False, "sensitivity": False}


@dataclass(frozen=True)
class Config:
    """How a network is compressed.

    Args:
        budget: how far; see :class:`Budget`.
        method: "hscc", or a baseline without regions, clusters and sequential fit: "svd" (one region, one cluster),
            "tucker2" (1 x 1, k x k, 1 x 1), "spatial_svd" (k x 1, 1 x k) or "balf" (k x k, 1 x 1; uncentred).
        factorization: "activation" (fits outputs on calibration data) or "weight" (plain SVD of the weight).
        regions: spatial regions a layer, at most.
        region_method: "kmeans" on position profiles, "grid", or "none" (one region).
        clusters: channel clusters a region, at most.
        reconstruction: "sequential" fits each layer to the dense outputs from the compressed prefix's inputs
            (Zhang et al. 2015), "independent" fits layers one by one; "weight" factors are always independent. Fits
            that read the data again (all sequential ones, and layers behind a squeeze) count errors behind the ReLU
            where one alone reads the layer.
        search: choose regions and clusters of each layer by what they buy under the budget, up to the numbers given;
            otherwise (and always for "weight" factors and energy budgets) take the numbers given.
        sharing: let regions share rows where that is cheaper than own ones.
        squeeze: let layers project their input channels to fewer where that is cheaper; part of the search.
        sensitivity: weigh errors by how much they move the network's output; needs a differentiable model. Energy
            budgets and "weight" factors do not use it.
        effort: of the search. "quick": at most 4 regions, no clusters or squeezes; "normal": what wins in one region is
            looked at in several; "thorough": all of it is.
        memory: bytes that statistics and held passes may take, beside a forward and a backward pass of one batch; by
            default 4 GiB, or half of what the machine has available where that is less. Less makes the work longer; too
            little is told at once.
        rank_multiple: ranks are multiples of this; by default 1, in ``portable`` networks 16, as runtimes compute in
            blocks of so many channels, and fewer in narrow layers.
        ridge: shrinkage of the sequential fit, relative to the mean variance.
        faster_only: leave layers dense that would not get faster on this machine, which is measured for that once
            (some seconds; see ``hscc.latency``). Always so with a latency budget.
        latency_batch: images of the calls whose time counts.
        portable: one region and one cluster a layer, so that an export (:func:`hscc.export`) is plain convolutions,
            which every runtime runs fast; ranks and squeezes are searched as ever.
        dtype: "float" leaves the model's own; "int8" gives the layers, of methods "hscc" and "svd", a first stage in 8
            bits once they are fitted, as :func:`hscc.quantize_` does: for inference, the model is frozen.
        linear: take ``nn.Linear`` on single positions, too, such as a VGG's classifier, all but the last; they hold
            numbers rather than FLOPs. Those on maps (N, H, W, C), 1 x 1 convolutions in all but name, always are.
        strict: layers with regions refuse other sizes of images than the calibrated one, for which the maps of their
            regions would be resized.
        skip: names of modules to leave alone with all that is in them, convolutions and the last linear layer.
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
    effort: str = "normal"
    memory: int | None = None
    rank_multiple: int | None = None
    ridge: float = 1e-3
    faster_only: bool = False
    latency_batch: int = 1
    portable: bool = False
    dtype: str = "float"
    linear: bool = False
    strict: bool = False
    skip: Sequence[str] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.skip, str):
            raise TypeError(f"skip: got the text {self.skip!r}, expected a list of names: skip=[{self.skip!r}]")
        object.__setattr__(self, "skip", tuple(self.skip))
        if not isinstance(self.budget, Budget):
            raise TypeError(f"budget: got {type(self.budget).__name__}, expected hscc.Budget, e.g. hscc.flops(5.3)")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {list(choices)}")
        for name in ("regions", "clusters", "rank_multiple", "latency_batch"):
            value = getattr(self, name)
            if name == "rank_multiple" and value is None:
                continue
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: got {value!r}, expected an integer of at least 1")
        if self.memory is not None and not (isinstance(self.memory, int) and self.memory >= 1):
            raise ValueError(f"memory: got {self.memory!r}, expected a number of bytes, such as 4 * 2**30")
        if self.timed and self.method not in ("hscc", "svd"):
            raise ValueError(f"method: got {self.method!r}, whose time is not known, expected 'hscc' or 'svd'")
        for name in ("portable", "linear", "strict"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: got {getattr(self, name)!r}, expected True or False")
        if self.dtype == "int8" and self.budget.max_drop is not None:
            raise ValueError(
                "dtype: got 'int8' with max_drop, which is judged in float, expected hscc.quantize_ after it"
            )
        if self.dtype == "int8" and self.method not in ("hscc", "svd"):
            raise ValueError(f"method: got {self.method!r} with dtype='int8', expected 'hscc' or 'svd'")
        if not self.ridge >= 0:
            raise ValueError(f"ridge: got {self.ridge}, expected a number of at least 0")

    @property
    def resolved(self) -> Config:
        """With what method and effort imply: "svd" is ours without all that makes it ours."""
        if self.method == "svd":
            return replace(self, **_PLAIN)
        config = replace(self, **_PORTABLE) if self.portable else self
        if config.effort == "quick" and config.searches:
            return replace(config, regions=min(config.regions, 4), clusters=1, squeeze=False)
        return config

    @property
    def searches(self) -> bool:
        """Whether the structure of each layer is chosen under the budget, not given."""
        return self.search and self.factorization == "activation" and self.budget.energy is None

    @property
    def sequential(self) -> bool:
        """Whether layers are fitted behind the compressed ones before them."""
        return self.reconstruction == "sequential" and self.factorization == "activation"

    @property
    def timed(self) -> bool:
        """Whether the machine's speed counts."""
        return self.faster_only or self.budget.timed

    def multiple_of(self, ranks: int) -> int:
        """What the rank of a layer that can have so many is a multiple of."""
        if self.rank_multiple is not None or not self.portable:
            return self.rank_multiple or 1
        return next((block for block in _BLOCKS if 4 * block <= ranks), 1)

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
