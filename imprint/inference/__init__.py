"""Object image, background and mask in, picture out. Importing this package loads no torch."""
