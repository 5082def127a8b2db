"""How long a step, and a whole run, takes here and on other machines: measurements, a model fitted to them, forecasts."""

BETWEEN_NODES = ("omni-path", "ethernet")  # the networks that the model knows
