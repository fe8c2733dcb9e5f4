"""How a file becomes an Image: nifti, dicom, raster."""
