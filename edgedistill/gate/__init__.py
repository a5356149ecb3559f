"""Measurements and budgets to a verdict, and its reports."""
