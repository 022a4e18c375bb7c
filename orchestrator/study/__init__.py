"""Methods x budgets x seeds: many runs, one table."""
