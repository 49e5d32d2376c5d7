"""What losses look at: the probability of the tokens that they keep, and the positions where they have no gradient."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from schemas.arrays import AnyArray


class Kept(NamedTuple):
    """Sums over positions.

    Attributes:
        covered: positions where the teacher has a distribution.
        student, teacher: probability of the tokens that the loss keeps, where it has one.
        without_gradient: positions where d is exactly 0; NaN where d needs draws, which few positions have.
    """

    positions: int = 0
    covered: int = 0
    student: float = 0.0
    teacher: float = 0.0
    without_gradient: float = 0.0

    def plus(self, distillation: Mapping[str, AnyArray]) -> "Kept":
        """With the positions of one more question, by its arrays of stage 4 or of a ranking."""
        known = np.isfinite(distillation["d_sq"])
        whole = not len(distillation.get("return_sum", ()))
        covered = known & np.isfinite(distillation["student_kept"])
        return Kept(
            self.positions + int(known.sum()),
            self.covered + int(covered.sum()),
            self.student + float(distillation["student_kept"][covered].sum()),
            self.teacher + float(distillation["teacher_kept"][covered].sum()),
            self.without_gradient + (float((distillation["d_sq"][known] == 0).sum()) if whole else np.nan),
        )

    def shares(self) -> dict[str, float | int]:
        """The columns of `schemas.tables.KEPT`."""
        n, covered = self.positions or np.nan, self.covered or np.nan
        return {
            "positions": self.positions,
            "covered": self.covered / n,
            "student_kept": self.student / covered,
            "teacher_kept": self.teacher / covered,
            "without_gradient": self.without_gradient / n,
        }
