"""Data, evaluation and training of RVM. Only the training step itself needs jax, and nothing here needs ROS."""
