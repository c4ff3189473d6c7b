"""Data sets by name or folder: images uint8 (N,C,H,W), or vectors float32 (N,d)."""

from dcl.data.load import SPLITS, Data, load, splits

__all__ = ["SPLITS", "Data", "load", "splits"]
