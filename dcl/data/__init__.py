"""Data sets by name or folder: images uint8 (N,C,H,W), or vectors float32 (N,d)."""

from dcl.data.data import Data
from dcl.data.load import SPLITS, load, splits

__all__ = ["SPLITS", "Data", "load", "splits"]
