"""Signs that a fit goes wrong, and the callback that names them."""
