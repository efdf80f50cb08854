"""The appearance flow (beyond the paper): says where in the reference each pixel of the object comes from.

From-scratch models answer an open pose with its mean, a blur. Here no pixel of the object is invented: the network
gives smooth fields (Zhou et al. 2016, "View synthesis by appearance flow"), and the picture is rendered from them and
from the reference, at any size.
"""

from imprint.appearance.fields import Fields
from imprint.appearance.losses import FlowWeights, compute_flow_losses
from imprint.appearance.network import AppearanceFlow
from imprint.appearance.placement import compute_placement, find_boxes
from imprint.appearance.rendering import (
    Rendering,
    build_grid,
    compute_behind,
    fill_smoothly,
    render,
    restrain_light,
    warp_reference,
)

__all__ = [
    "AppearanceFlow",
    "Fields",
    "FlowWeights",
    "Rendering",
    "build_grid",
    "compute_behind",
    "compute_flow_losses",
    "compute_placement",
    "fill_smoothly",
    "find_boxes",
    "render",
    "restrain_light",
    "warp_reference",
]
