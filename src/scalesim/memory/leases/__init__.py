"""The life of a lease: prefix lookup, admission, loads, growth, commit and release."""
