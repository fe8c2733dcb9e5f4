"""Position → sample: order, mixing, crops, quarantine. Pure functions of (seed, position)."""
