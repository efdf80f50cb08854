"""What a training run will need, before it begins: memory, time, disk. Importing this package loads no torch."""
