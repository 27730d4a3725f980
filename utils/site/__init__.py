"""The course as a static site, from the notebooks as they are stored: `make site`.

- `pages`: which files become pages or are linked, and the index, from the README.
- `glossary`: the terms, and where a lesson first uses each; its page.
- `stored`: the outputs of a notebook are all there, and from which commit they are.
- `conf`: Sphinx's configuration.
- `rendering`: what is changed on the way: formulas, foreign pictures, frames.
- `links`: follows every link of the built pages; nothing is loaded from elsewhere.
- `build`: all of it, in order.
"""
