"""Makes resize_reference.npz with jax: `pip install jax==0.10.2`, then run this in test/data."""
# mypy: ignore-errors

import jax
import numpy as np

CASES = {
    "grow": (16, 16, 20, 30),
    "shrink": (16, 16, 8, 12),
    "grow_and_shrink": (16, 16, 24, 10),
    "large": (16, 16, 30, 55),
    "shrink_to_one": (16, 16, 1, 3),
    "one_axis": (16, 16, 16, 21),
    "not_square": (7, 12, 13, 5),
    "identity": (16, 16, 16, 16),
}


def main() -> None:
    random = np.random.default_rng(0)
    arrays = {}
    for name, (rows, cols, new_rows, new_cols) in CASES.items():
        grid = random.standard_normal((rows, cols, 4), dtype=np.float32)
        arrays[f"{name}_in"] = grid
        arrays[f"{name}_out"] = np.asarray(jax.image.resize(grid, (new_rows, new_cols, 4), method="bicubic"))
    np.savez_compressed("resize_reference.npz", **arrays)


if __name__ == "__main__":
    main()
