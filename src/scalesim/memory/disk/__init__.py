"""The disk below the host pool: pages in slot files, and the link that copies them."""
