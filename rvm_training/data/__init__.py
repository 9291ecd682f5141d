"""Video with ground truth to train on and to measure with."""
