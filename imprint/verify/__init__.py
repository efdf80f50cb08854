"""`imprint verify`: a preset tried on this machine, by the real commands. Importing this package loads no torch."""
