"""For those who test an engine, a link, a runner or a policy: a model of tags, a hostile link, a
check of memory."""
