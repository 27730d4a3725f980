"""Questions and answers, from a file to rows to train with (lesson 03).

- `faqs`: read and clean a file of questions and answers.
- `facts`: the table that the course's own questions come from, and what is right.
- `splits`: which rows train, which choose the epoch, and which test.
- `replay`: rows of earlier skills, mixed in so that tuning does not cost them.
"""
