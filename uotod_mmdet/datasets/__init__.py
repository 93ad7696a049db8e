"""Data sets."""

from .color_boxes import ColorBoxesDataset

__all__ = ['ColorBoxesDataset']
