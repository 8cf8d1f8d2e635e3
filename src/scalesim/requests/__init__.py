"""A request's life on its caller's thread: checked, prepared, limited, waited for."""
