"""Words that every part shares: amounts, the codec, leases, errors, events, status, configuration."""
