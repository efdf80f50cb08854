"""What the network answers: few numbers, coarse and smooth, that a picture of any size is rendered from."""

from __future__ import annotations

from dataclasses import dataclass, fields

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Over the scene crop, whose coordinates go from -1 to 1 (x to the right, y down), as the reference's do.

    placement, affine: crop coordinates to reference coordinates, by a plain paste and by the network; flow: added to
    them, in the reference's units; gain: the logarithm of the object's light per colour; shadow: the logarithm of the
    background's light that is taken away, from 0 up; fill: what `replace` adds to the smooth continuation of the
    surroundings, colours being 0-1; log_error: the logarithm of the loss that the network expects of its own answer.
    """

    placement: Float[Tensor, "b 2 3"]
    affine: Float[Tensor, "b 2 3"]
    flow: Float[Tensor, "b 2 g g"]
    gain: Float[Tensor, "b 3 g g"]
    shadow: Float[Tensor, "b 3 f f"]
    fill: Float[Tensor, "b 3 f f"]
    log_error: Float[Tensor, " b"]

    def select(self, row: int) -> Fields:
        """Those of one sample, as a batch of one."""
        return Fields(**{field.name: getattr(self, field.name)[row : row + 1] for field in fields(self)})
