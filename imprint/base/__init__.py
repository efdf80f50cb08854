"""The base model: both stages on the rendered world, measured on its held-out objects, and exported to be shipped."""
