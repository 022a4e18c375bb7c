"""One file per verb; each exposes a click command named ``command``, imported when called."""
