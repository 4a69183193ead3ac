"""One file to one value: images, DICOM, NIfTI, tables; and which files may be opened at all."""
