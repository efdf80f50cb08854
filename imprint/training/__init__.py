"""Both training stages: one loop, two tasks. Importing this package loads no torch."""
