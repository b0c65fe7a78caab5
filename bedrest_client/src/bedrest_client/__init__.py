"""BedREST: the λλM client for the terminal."""
