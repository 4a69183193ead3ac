"""Annotated places: tables of boxes, masks, and the regions of a dataset index's images."""
