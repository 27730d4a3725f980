"""Checks for the exercises: `frame` holds what they share, `lesson_NN` one lesson's.

An answer that was not tried, is right, or shows a known mistake each gets its own line.
`frame` says how to add an exercise.
"""
