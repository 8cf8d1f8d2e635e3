"""The village: people with plans on a map, who walk, meet and talk. No engine and no torch in it.

The world asks for texts and takes them, whoever writes them: ``Village`` in ``world.py``.
"""
