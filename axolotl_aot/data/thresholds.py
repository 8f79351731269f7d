"""From scores to labels: by a value, or by a share of the scores."""

from typing import NamedTuple

from pydantic import BaseModel, Field, model_validator

from axolotl_aot.errors import AOTDataError


class Cut(NamedTuple):
    """Scores at or above `upper` are positive, at or below `lower` negative; None: none are."""

    upper: float | None
    lower: float | None
    strict: tuple[bool, bool] = (False, False)  # whether a score on `upper`, or on `lower`, is left out

    def label(self, score: float) -> bool | None:
        """True, False, or None for a score in between."""
        if self.upper is not None and (score > self.upper or (score == self.upper and not self.strict[0])):
            return True
        if self.lower is not None and (score < self.lower or (score == self.lower and not self.strict[1])):
            return False
        return None


class Thresholds(BaseModel):
    """Options by which scored completions become positive or negative: at most one for each of the two."""

    positive_above: float | None = None
    negative_below: float | None = None
    positive_top: float | None = Field(default=None, gt=0, le=1)
    negative_bottom: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _one_rule_per_label(self) -> "Thresholds":
        for value, share in (("positive_above", "positive_top"), ("negative_below", "negative_bottom")):
            if getattr(self, value) is not None and getattr(self, share) is not None:
                raise ValueError(f"set `{value}` or `{share}`, not both")
        if (
            self.positive_above is not None
            and self.negative_below is not None
            and self.positive_above < self.negative_below
        ):
            raise ValueError(
                f"`positive_above: {self.positive_above:g}` lies below `negative_below: "
                f"{self.negative_below:g}`: scores in between would be both"
            )
        if (self.positive_top or 0) + (self.negative_bottom or 0) > 1:
            raise ValueError(
                "`positive_top` and `negative_bottom` are shares of the same scores: their sum "
                "must not exceed 1"
            )
        return self

    @property
    def any_set(self) -> bool:
        """Whether any of the four options is set."""
        return any(getattr(self, name) is not None for name in Thresholds.model_fields)

    @property
    def by_share(self) -> bool:
        """Whether an option is a share, so that the cut depends on all scores."""
        return self.positive_top is not None or self.negative_bottom is not None

    def cut(self, scores: list[float]) -> Cut:
        """Where these scores are cut.

        Raises:
            AOTDataError: so many scores are equal that the same ones would be positive and negative.
        """
        ordered = sorted(scores)
        upper, lower = self.positive_above, self.negative_below
        strict = upper is not None, lower is not None
        if self.positive_top is not None and ordered:
            upper = ordered[-_count(self.positive_top, ordered)]
        if self.negative_bottom is not None and ordered:
            lower = ordered[_count(self.negative_bottom, ordered) - 1]
        if upper is not None and lower is not None and (upper, any(strict)) < (lower, True):
            rules = ", ".join(
                f"`{name}: {value:g}`"
                for name in Thresholds.model_fields
                if (value := getattr(self, name)) is not None
            )
            raise AOTDataError(
                f"{rules}: scores from {upper:g} to {lower:g} would be both positive and negative, as many "
                "are equal or the two overlap; set positive_above and negative_below"
            )
        return Cut(upper, lower, strict)


def _count(share: float, scores: list[float]) -> int:
    """How many scores a share is, at least one; 1e-9 makes up for rounding, as in 0.29 * 100."""
    return max(1, int(share * len(scores) + 1e-9))
