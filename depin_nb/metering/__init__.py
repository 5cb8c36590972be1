"""Prices, the meter, budgets and estimates. Pure: no clock, no network, no chain."""
