"""Where sessions and quotas last: one small interface (`base`), and a file for each store that keeps it."""
