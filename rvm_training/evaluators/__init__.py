"""What is measured: one benchmark or metric a file."""
