"""Pools of pages and the memory behind them."""
