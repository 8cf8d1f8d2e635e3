"""A lease's life: looked up, acquired, waited for, grown, released."""
