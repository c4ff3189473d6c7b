"""Views: random augmentations, drawn for each image of a batch; and the views in use."""

from dcl.views.view import (
    CROP_FLIP,
    DEEPCLUSTER_VIEW,
    DIGIT_VIEW,
    HAND_VIEW,
    PHOTO_VIEW,
    SCAN_STRONG,
    SWAV_VIEW,
    View,
    multi_crop,
)

__all__ = [
    "CROP_FLIP",
    "DEEPCLUSTER_VIEW",
    "DIGIT_VIEW",
    "HAND_VIEW",
    "PHOTO_VIEW",
    "SCAN_STRONG",
    "SWAV_VIEW",
    "View",
    "multi_crop",
]
