"""Which slices of a volume are taken as pictures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Slices:
    """Slices of a volume: of a NIfTI file, a DICOM file with several frames, a DICOM series. All, when nothing is said.

    Args:
        axis: of NIfTI, 0 sagittal, 1 coronal or 2 axial, whichever way the file stores them.
        share: (low, high) within 0..1, the part of the way along the axis; at least one slice is taken.
        indices: instead of a share, counted from the patient's right, front and head (NIfTI) or from the first (DICOM).
    """

    axis: int = 2
    share: tuple[float, float] = (0.0, 1.0)
    indices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "share", tuple(self.share))
        object.__setattr__(self, "indices", tuple(self.indices))
        if self.axis not in (0, 1, 2):
            raise ValueError(f"slices: got axis {self.axis}, expected 0, 1 or 2")
        if len(self.share) != 2 or not 0 <= self.share[0] <= self.share[1] <= 1:
            raise ValueError(f"slices: got share {self.share}, expected (low, high) in 0..1")
        if any(index < 0 for index in self.indices):
            raise ValueError(f"slices: got indices {self.indices}, expected none below 0")

    @classmethod
    def parse(cls, text: str | None) -> Slices:
        """From ``axis:low-high`` (shares in 0..1) or ``axis:index,index``, e.g. ``2:0.3-0.7`` or ``0:90``; None is all.

        Raises ValueError for any other text.
        """
        if text is None:
            return cls()
        axis, _, rest = text.partition(":")
        try:
            if "-" in rest:
                return cls(int(axis), share=tuple(float(part) for part in rest.split("-")))
            return cls(int(axis), indices=tuple(int(part) for part in rest.split(",") if rest))
        except ValueError as error:
            raise ValueError(f"slices: got {text!r}, expected axis:low-high or axis:index,... ({error})") from error

    def of(self, count: int, name: str) -> list[int]:
        """The indices among ``count`` slices; ValueError with the file's name when one of them is not there."""
        if self.indices:
            if max(self.indices) >= count:
                raise ValueError(f"{name}: got {count} slices, expected one with index {max(self.indices)}")
            return [*self.indices]
        low, high = self.share
        found = [i for i in range(count) if low <= (i + 0.5) / count <= high]
        return found or [min(int((low + high) / 2 * count), count - 1)][:count]
