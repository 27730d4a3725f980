"""Stand-ins for the handlers that the image brings for artifacts without code."""
