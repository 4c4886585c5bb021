"""The standard parts of detectors: region proposals, RoI pooling, box and mask heads, one-stage heads."""
