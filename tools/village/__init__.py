"""Makes the village's model: its training text, its tokens, its weights, its card.

``python -m tools.village --help`` lists the steps. Nothing here is installed with the package.
"""
