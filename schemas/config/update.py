"""What signals do to the student's parameters."""

from pydantic import Field

from schemas.config.base import Settings


class Update(Settings):
    """Update gain: whether what a signal teaches on some questions raises success on others (statistics of forecasts).

    It sees a teacher that copies what it is shown, which scores of single tokens cannot.
    """

    dimensions: int = Field(
        0,
        ge=0,
        le=2**24,
        description="Numbers that stand for a gradient by all parameters, by a random projection whose relative error "
        "is one over their root; the gradient itself where there are fewer parameters; 0: not computed. A ranking then "
        "takes a backward pass for each signal and rollout",
    )
