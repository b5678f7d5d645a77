"""Files of images become network inputs: pictures, DICOM, NIfTI, MATLAB, arrays; labels and groups."""
