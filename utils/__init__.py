"""Helpers of the course; each module is named for what it does."""
