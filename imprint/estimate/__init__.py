"""What a training run will need, said before it begins: memory, time and disk. Importing this package loads no torch."""
