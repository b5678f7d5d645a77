"""What a sweep varies: method, rank rule, regions, clusters, budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product

from ..config import Budget, Config

RULES = ("search", "given", "energy")
OPEN = Budget(max_drop=1.0)  # one look at the layers for plans of any budget, as a search for an accuracy has it
SHARE = Budget(energy=1.0)  # the same for plans of any energy


@dataclass(frozen=True)
class Setting:
    """One compression. ``regions`` and ``clusters`` are 1 for the methods that have none; ``budget`` is times fewer
    FLOPs, or with the rule "energy" the share that each cluster keeps."""

    method: str
    rule: str
    regions: int
    clusters: int
    budget: float

    @property
    def name(self) -> str:
        """Of its files."""
        shape = f"-r{self.regions}-c{self.clusters}-{self.rule}" if self.method == "hscc" else ""
        return f"{self.method}{shape}-{self.budget:g}"

    @property
    def limit(self) -> Budget:
        return Budget(energy=self.budget) if self.rule == "energy" else Budget(flops=self.budget)

    def config(self, base: Config) -> Config:
        """For a look at the layers; settings that differ in the budget alone have the same."""
        return replace(
            base,
            budget=SHARE if self.rule == "energy" else OPEN,
            method=self.method,
            regions=self.regions,
            clusters=self.clusters,
            search=base.search and self.rule == "search",
        )


@dataclass(frozen=True)
class Grid:
    """Every combination of these is a setting.

    Args:
        methods: of :class:`hscc.Config`. All but "hscc" have no regions, clusters and rules: budgets alone vary.
        regions, clusters: with the rule "search" at most so many, else just so many.
        rules: how ranks are found. "search": structure and ranks of all layers under one budget; "given": ranks alone,
            every layer in that many regions and clusters; "energy": the paper's, each cluster the smallest rank that
            keeps a share of its energy.
        flops: budgets of the first two rules, times fewer.
        energies: shares of the third.
        base: all else, such as ``seed`` and ``skip``; its budget does not count.

    Raises ValueError for what no compression could be.
    """

    methods: Sequence[str] = ("hscc", "svd", "tucker2")
    regions: Sequence[int] = (1, 4, 16)
    clusters: Sequence[int] = (2,)
    rules: Sequence[str] = ("search",)
    flops: Sequence[float] = (3.0, 5.3, 8.0, 12.0, 20.0, 30.0)
    energies: Sequence[float] = (0.8, 0.9, 0.95, 0.99)
    base: Config = field(default_factory=lambda: Config(OPEN))

    def __post_init__(self) -> None:
        for axis in fields(self)[:-1]:
            values = getattr(self, axis.name)
            if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
                raise TypeError(f"{axis.name}: got {values!r}, expected a list")
            object.__setattr__(self, axis.name, tuple(dict.fromkeys(values)))
        if unknown := set(self.rules) - set(RULES):
            raise ValueError(f"rules: got {sorted(unknown)[0]!r}, expected some of {list(RULES)}")
        if not self.settings():
            raise ValueError(f"grid: got {self}, which is no setting, expected at least one value of each")
        for setting in self.settings():  # wrong values are told before the work
            setting.config(self.base), setting.limit

    def settings(self) -> list[Setting]:
        """In the order of the work: those of one look at the layers follow one another, from near to far."""
        found: list[Setting] = []
        for method in self.methods:
            if method != "hscc":
                found += [Setting(method, "search", 1, 1, budget) for budget in sorted(self.flops)]
                continue
            for rule, regions, clusters in product(self.rules, self.regions, self.clusters):
                budgets = sorted(self.energies, reverse=True) if rule == "energy" else sorted(self.flops)
                found += [Setting(method, rule, regions, clusters, budget) for budget in budgets]
        return found
