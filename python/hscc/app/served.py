"""A model as ``hscc serve`` names it, and the guard that goes with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..serving.guarding import Guarded
    from ..serving.models import Served

WHOLE = (".pt2", ".onnx")  # files that need no function
POLICIES = ("flag", "reject", "dense", "off")


@dataclass(frozen=True)
class Wanted:
    """``source`` is the ``file.py:function`` that builds the network of weights; None for a file of :data:`WHOLE`."""

    name: str
    file: Path
    source: str | None

    @classmethod
    def parse(cls, text: str, model: str | None) -> Wanted:
        """Of ``[NAME=]FILE[,file.py:function]``; ``model`` is for weights that name no function.

        Raises FileNotFoundError, and ValueError for weights without a function.
        """
        name, equals, rest = text.partition("=")
        file, _, source = rest.partition(",") if equals else text.partition(",")
        path = Path(file)
        if not path.is_file():
            raise FileNotFoundError(f"models: got {file!r}, expected a file of weights, a .pt2 package or ONNX")
        if path.suffix not in WHOLE and not (source or model):
            raise ValueError(f"model: got none for {file!r}, expected --model file.py:function that builds the network")
        return cls(name if equals else path.stem, path, source or model)

    def anywhere(self) -> Wanted:
        """With full paths, for processes of other folders."""
        python, colon, function = (self.source or "").partition(":")
        source = f"{Path(python).resolve()}{colon}{function}" if python else self.source
        return Wanted(self.name, self.file.resolve(), source)

    def load(self, any_size: bool) -> Served:
        from ..serving.models import Served

        return Served.load(self.file, self.source, name=self.name, any_size=any_size)


@dataclass(frozen=True)
class Policy:
    """What becomes of images unlike the calibrated ones; ``dense`` are weights of the model that answers instead.

    Raises ValueError for an unknown one, and for dense weights without the policy "dense" or the other way round.
    """

    name: str
    dense: Path | None = None

    def __post_init__(self) -> None:
        if self.name not in POLICIES:
            raise ValueError(f"guard: got {self.name!r}, expected one of {[*POLICIES]}")
        if (self.name == "dense") != (self.dense is not None):
            got = None if self.dense is None else str(self.dense)
            raise ValueError(f"dense: got {got!r} with --guard {self.name}, expected a file with --guard dense alone")
        if self.dense is not None and not self.dense.is_file():
            raise FileNotFoundError(f"dense: got {str(self.dense)!r}, expected a file of weights")

    def check(self, wanted: list[Wanted], litserve: bool) -> None:
        """Raises ValueError for what cannot be guarded so."""
        if self.dense is not None and len(wanted) > 1:
            raise ValueError(f"dense: got one file for {len(wanted)} models, expected one model with --guard dense")
        if litserve and self.name in ("reject", "dense"):
            raise ValueError(f"guard: got {self.name!r} with --litserve, which has none, expected 'flag' or 'off'")

    def anywhere(self) -> Policy:
        """With a full path, for processes of other folders."""
        return self if self.dense is None else Policy(self.name, self.dense.resolve())

    def of(self, wanted: Wanted, any_size: bool) -> Guarded | None:
        """With the guard in the model's file; None without one, which "reject" and "dense" do not take."""
        from ..io.checkpoint import load_guard
        from ..serving.guarding import Guarded

        guard = None if self.name == "off" or wanted.file.suffix in WHOLE else load_guard(wanted.file)
        if guard is not None:
            dense = None if self.dense is None else Wanted(self.dense.stem, self.dense, wanted.source).load(any_size)
            return Guarded(guard, self.name, dense)
        if self.name in ("reject", "dense"):
            raise ValueError(f"guard: got {self.name!r} for {str(wanted.file)!r}, which has none, expected --guard off")
        return None
