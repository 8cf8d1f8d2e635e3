"""A proxy in front of any OpenAI-compatible server, and what its record says of the program.

Used by ``scalesim run``. ``app`` forwards requests unchanged and reports each call to ``recording``;
``texts`` and ``answer`` read requests and answers; ``program`` runs the program against the proxy;
``findings`` turns the record into figures and ``page`` shows them. No text of a prompt or an answer
is kept, and no key: only times, lengths and which texts were equal.
"""
