"""The standard parts of two-stage detectors: region proposals, RoI pooling, the box head."""
