"""The registry client: the distribution specification over HTTP."""
