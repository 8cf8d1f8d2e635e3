"""A proxy in front of any OpenAI-compatible server, and what its record says of the program.

Used by ``scalesim run``. ``app`` forwards requests unchanged and notes each call in a
``recording``; ``texts`` and ``answer`` read requests and answers; ``program`` runs the program;
``findings`` are figures of the record, and ``changes`` what to change first. No text of a prompt or
an answer is kept, and no key: only times, lengths, and which texts were equal.
"""
