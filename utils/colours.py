"""The course's colours, named for what they are or show; values as HTML writes them."""

from __future__ import annotations

# --- plots ---

BLUE = "#2268b2"
ORANGE = "#d8721c"
GREEN = "#3a8f4d"
VIOLET = "#8a5bb5"
RED = "#b0413e"
GREY = "#777777"
SERIES = (BLUE, ORANGE, GREEN, VIOLET, RED)
"""One for each series of a plot, in this order."""

# --- tokens ---
# Translucent, so that they lie on a light ground as well as on a dark one.

LEARNED_GROUND = "rgba(58,143,77,.30)"  # GREEN
READ_GROUND = "rgba(128,128,128,.14)"
PADDING_OUTLINE = "rgba(128,128,128,.7)"


# --- the evaluation report ---

BEFORE = "#9aa3ab"
AFTER = BLUE

# --- the road map and the drawing of the whole ---

CARD = "#f4f6f8"
LIT = "#0b5cad"
LIT_INK = "#ffffff"
UNLIT = "#ffffff"
LIT_GROUND = "#dbe9f8"
PANEL = "#c3ccd4"
INK = "#24323f"
