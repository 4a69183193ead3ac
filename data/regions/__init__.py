"""Annotated places: tables of boxes, masks, and the regions of a catalogue's images."""
