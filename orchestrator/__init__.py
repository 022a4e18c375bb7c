"""Experiments: configuration, plan, launches, journal, tracking, reports and the command line."""
