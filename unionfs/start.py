"""No code: pip and others know the cached code of this module, which is ``codecache``'s file."""
