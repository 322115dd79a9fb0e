"""Shipped doubles: clocks, models, stores and the simulator. Nothing imports this."""
